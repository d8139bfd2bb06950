"""pefx.rl.listing: which files there are, what is in them, in words that a terminal can bear."""

from pathlib import Path

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.rl.listing import by_reward, chosen, find, plain, rollout_tables, summary, summary_table
from pefx.rl.records import read_rollouts, rollouts_path, write_rollouts
from tests.rl_small import rollout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output of a run of two policies and some steps."""
    for policy, steps in (("ann", 3), ("team/bob", 1)):
        for step in range(steps):
            some = [
                rollout(policy=policy, revision=step, sample=sample, reward=step - sample / 4) for sample in range(3)
            ]
            write_rollouts(rollouts_path(tmp_path, policy, step), some)
    (tmp_path / "rollouts" / "ann" / "notes.parquet").write_bytes(b"")
    return tmp_path


def test_files_are_found_from_wherever_one_looks(run: Path):
    every = [("ann", 0), ("ann", 1), ("ann", 2), ("team/bob", 0)]
    for path, expected in (
        (run, every),
        (run / "rollouts", every),
        (run / "rollouts" / "team", every[3:]),
        (run / "rollouts" / "ann", every[:3]),
        (run / "rollouts" / "ann" / "000001.parquet", [("ann", 1)]),
    ):
        assert [(one.policy, one.update) for one in find(path)] == expected
    moved = run / "rollouts" / "ann" / "000001.parquet"
    assert find(moved.rename(run / "some.parquet"))[0].update == 1


def test_what_is_not_there_is_said(run: Path):
    with pytest.raises(PefxError, match="no such run, folder or file"):
        find(run / "absent")
    (run / "empty").mkdir()
    with pytest.raises(
        PefxError, match=r"holds no rollouts; those of a run are OUTPUT/rollouts/POLICY/000000\.parquet"
    ):
        find(run / "empty")
    with pytest.raises(PefxError, match="--policy: there are no rollouts of 'carl'; there are of ann, team/bob"):
        chosen(find(run), "carl", None)
    with pytest.raises(PefxError, match="--step: there are no rollouts of step 3; there are of 0 to 2"):
        chosen(find(run), "ann", 3)
    with pytest.raises(PefxError, match=r"there are of 0$"):
        chosen(find(run), "team/bob", 1)


def test_the_best_and_the_worst(run: Path):
    nothing = rollout(reward=float("nan"))
    every = [(one, r) for one in chosen(find(run), "ann", None) for r in [*read_rollouts(one.path), nothing]]
    assert [r.reward for _, r in by_reward(every, best=True)][:4] == [2.0, 1.75, 1.5, 1.0]
    assert [r.reward for _, r in by_reward(every, best=False)][:2] == [-0.5, -0.25]
    assert len(by_reward(every, best=True)) == 9


def test_a_summary_is_of_what_has_the_number(run: Path):
    one = find(run)[0]
    some = [rollout(reward=1.0), rollout(reward=0.0, parts={"exact": 0.0}), rollout(reward=float("nan"))]
    some.append(rollout(error="no", finish_reason="error", reward=float("nan"), sampled=np.zeros(5, np.bool_)))
    found = summary(one, some)
    assert (found["rollouts"], found["errors"], found["reward"], found["best"]) == (4, 1, 0.5, 1.0)
    assert found["parts"] == {"exact": 0.5, "length": -0.25}
    assert (found["tokens"], found["mean_logprob"]) == (2.0, -1.0)
    assert found["finish_reasons"] == {"error": 1, "stop": 3}
    empty = summary(one, [])
    assert (empty["reward"], empty["best"], empty["tokens"]) == (None, None, None)
    table = summary_table([found, empty])
    assert "exact 0.5, length -0.25" in table
    assert "error 1, stop 3" in table


def test_a_rollout_is_shown_whole_and_harmless(run: Path):
    one = find(run)[0]
    evil = ("first\nsecond", "\x1b[2Jgone \x07 [red]x[/red] é", "said", "again")
    shown = rollout_tables([(one, rollout(transcript=evil, turns=2, error="it broke", reward=float("nan")))])
    for part in ("ann, step 0, task sums, prompt 3, sample 1", "first", "second", "\\x1b[2Jgone \\x07 [red]x[/red] é"):
        assert part in shown
    for part in (
        "it broke",
        "2 of 5 tokens drawn",
        "mean logprob -1",
        "2 turns",
        "seed 4294967295",
        "after 12 updates",
    ):
        assert part in " ".join(shown.split())
    assert "\x1b" not in shown
    assert plain(one, rollout())["transcript"] == ("5 + 7 =", "12")
    assert plain(one, rollout(reward=float("nan")))["reward"] is None
