"""`learn` takes what a run's users learn from; whole runs are in test_rl_curriculum."""

import pytest

from pefx.config import TaskConfig, TrainConfig, UserConfig
from pefx.rl import run
from pefx.rl.curriculum import Rewarded
from pefx.training.curriculum import Texts

READS, ACTS = UserConfig("ann", "a.jsonl"), UserConfig("bob", task=TaskConfig("sorting"))


@pytest.mark.parametrize(("users", "wanted"), [((READS,), Texts), ((ACTS,), Rewarded), ((READS, ACTS), Rewarded)])
def test_one_rewarded_user_makes_a_rewarded_run(users, wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(run, "train", lambda config, curriculum: asked.append((config, curriculum)) or 7)
    config = TrainConfig(name="run", output="out", users=users)
    assert run.learn(config) == 7
    assert asked == [(config, wanted)]
