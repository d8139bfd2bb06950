"""`learn(config)`: what `train.py` and `pefx train` call."""

from pefx.config import TrainConfig
from pefx.rl.curriculum import Rewarded
from pefx.training.curriculum import Texts
from pefx.training.run import train


def learn(config: TrainConfig) -> int:
    """`train`, of users that learn from text, from rewards, or some from either."""
    return train(config, Rewarded if any(user.task is not None for user in config.users) else Texts)
