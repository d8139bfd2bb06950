"""`learn(config)`: what `train.py` and `pefx train` call."""

from functools import partial

from pefx.config import TrainConfig
from pefx.rl.curriculum import Rewarded
from pefx.rl.rewards import Rewards
from pefx.training.run import train


def learn(config: TrainConfig) -> int:
    """`train`, of users that learn from text, from rewards, or some from either."""
    if all(user.task is None for user in config.users):
        return train(config)
    with Rewards() as rewards:
        return train(config, partial(Rewarded, rewards=rewards))
