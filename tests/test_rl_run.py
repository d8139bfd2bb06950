"""`learn` takes what a run's users learn from; whole runs are in test_rl_curriculum."""

from typing import Any

import pytest

from pefx.config import TaskConfig, TrainConfig, UserConfig
from pefx.rl import run
from pefx.rl.curriculum import Rewarded

READS, ACTS = UserConfig("ann", "a.jsonl"), UserConfig("bob", task=TaskConfig("sorting"))


@pytest.mark.parametrize(("users", "rewarded"), [((READS,), False), ((ACTS,), True), ((READS, ACTS), True)])
def test_one_rewarded_user_makes_a_rewarded_run(users, rewarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def train(config: TrainConfig, curriculum: Any = None) -> int:
        asked.append((config, getattr(curriculum, "func", None)))
        return 7

    monkeypatch.setattr(run, "train", train)
    config = TrainConfig(name="run", output="out", users=users)
    assert run.learn(config) == 7
    assert asked == [(config, Rewarded if rewarded else None)]
