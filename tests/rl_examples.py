"""Made-up rollouts for tests of what is learned from them."""

from dataclasses import replace

import numpy as np

from pefx.config import PolicyLossConfig, RolloutConfig, SamplerConfig, TaskConfig, TrainConfig, UserConfig
from pefx.rl.plan import RewardPlan, make_plan
from pefx.rl.records import Rollout
from pefx.training.sessions import make_sessions


def rollout(group: int, sample: int, reward: float, prompt: int = 3, drawn: int = 4, **fields) -> Rollout:
    """`prompt` tokens and `drawn` ones, whose numbers follow from group and sample."""
    random, size = np.random.default_rng([group, sample]), prompt + drawn
    sampled = np.arange(size) >= prompt
    made = Rollout(
        policy="ann",
        task="sorting",
        group=group,
        sample=sample,
        revision=0,
        seed=sample,
        tokens=random.integers(1, 100, size).astype(np.int32),
        sampled=sampled,
        logprobs=np.where(sampled, -random.random(size), 0).astype(np.float32),
        routes=random.integers(0, 4, (size, 2, 2)).astype(np.uint16),
        reward=reward,
        parts={},
        finish_reason="stop",
        text="",
        turns=1,
    )
    return replace(made, **fields)


def plan_of(loss: PolicyLossConfig, prompts: int = 2, **fields) -> RewardPlan:
    """The plan of one policy."""
    config = TrainConfig(
        name="run",
        output="out",
        users=(UserConfig("ann", task=TaskConfig("sorting")),),
        policy_loss=loss,
        rollout=RolloutConfig(prompts=prompts, group=2),
    )
    config = replace(config, **fields)
    found = make_plan(config, make_sessions(config)[0])
    assert found is not None
    return found


STALE = SamplerConfig(stale=1)
