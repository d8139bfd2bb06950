"""What a session's config comes to: numbers of the table unless it has its own, and which passes are needed."""

from dataclasses import replace

import pytest

from pefx.config import PolicyLossConfig, RolloutConfig, SamplerConfig, TaskConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.losses.rows import LOSSES, NUMBER
from pefx.rl.plan import RewardPlan, make_plan
from pefx.training.sessions import make_sessions

CONFIG = TrainConfig(name="run", output="out", users=(UserConfig("ann", task=TaskConfig("sorting")),))


def plan(loss: PolicyLossConfig = CONFIG.policy_loss, task: str = "sorting", **fields) -> RewardPlan:
    users = (UserConfig("ann", task=TaskConfig(task)),)
    config = replace(CONFIG, policy_loss=loss, users=users, **fields)
    found = make_plan(config, make_sessions(config)[0])
    assert found is not None
    return found


def test_a_session_that_reads_text_has_none() -> None:
    config = replace(CONFIG, users=(UserConfig("ann", "a.jsonl"),))
    assert make_plan(config, make_sessions(config)[0]) is None


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_are_the_rows_unless_given(name: str) -> None:
    row = LOSSES[name]
    task = "facts" if name == "context" else "sorting"
    assert plan(PolicyLossConfig(name), task=task).numbers() == {
        "loss": NUMBER[name], "clip_low": row.clip_low, "clip_high": row.clip_high, "beta": row.beta,
        "kl": 0.0, "entropy": 0.0,
    }  # fmt: skip
    own = plan(PolicyLossConfig(name, clip_low=0.0, clip_high=0.5, beta=0.25, kl=0.125, entropy=0.5), task=task)
    assert (own.clips, own.numbers()["beta"], own.numbers()["kl"]) == ((0.0, 0.5), 0.25, 0.125)


def test_the_trainers_own_pass_is_made_where_it_can_differ() -> None:
    assert not plan().trainer
    assert not plan(sampler=SamplerConfig(weights="plain")).trainer
    assert plan(sampler=SamplerConfig(weights="int8")).trainer
    assert plan(sampler=SamplerConfig(stale=1)).trainer
    assert not plan(PolicyLossConfig("importance_sampling"), sampler=SamplerConfig(stale=1)).trainer
    assert plan(PolicyLossConfig("importance_sampling", correction="k3"), sampler=SamplerConfig(stale=1)).trainer
    assert plan(PolicyLossConfig(replay="trainer")).trainer
    assert not plan(PolicyLossConfig(replay="sampler")).trainer


def test_the_base_is_asked_where_it_is_read() -> None:
    assert not plan().reference
    assert plan(PolicyLossConfig(kl=0.1)).reference
    assert plan(PolicyLossConfig("dpo")).reference


def test_sizes_of_a_drawing() -> None:
    own = plan(rollout=RolloutConfig(prompts=4, updates=3, max_tokens=10), accumulate=2)
    assert (own.groups, own.micro_batches, own.longest) == (12, 6, 10)


def test_an_answer_is_as_long_as_its_turns() -> None:
    config = replace(CONFIG, users=(UserConfig("ann", task=TaskConfig("lookup", turns=3)),))
    found = make_plan(config, make_sessions(config)[0])
    assert found is not None
    assert found.longest == 3 * config.rollout.max_tokens


def test_a_wrong_task_is_told_with_its_user() -> None:
    config = replace(CONFIG, users=(UserConfig("ann", task=TaskConfig("chess")),))
    with pytest.raises(PefxError, match=r"user 'ann': task.name: no task is called 'chess'"):
        make_plan(config, make_sessions(config)[0])
