"""`pefx rollouts`: lists and shows; what makes no sense is one line and code 2."""

import json
from pathlib import Path

import pytest

from pefx.cli import main
from pefx.rl.records import rollouts_path, write_rollouts
from tests.rl_small import rollout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for policy in ("ann", "bob"):
        for step in range(2):
            some = [
                rollout(
                    policy=policy,
                    sample=sample,
                    reward=float(sample + 10 * step),
                    transcript=("?", f"<{policy}{sample}>"),
                )
                for sample in range(8)
            ]
            write_rollouts(rollouts_path("run", policy, step), some)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["rollouts", *words]) == code
    printed = capsys.readouterr()
    if code:
        assert printed.err.count("\n") == 1
        return printed.err
    return printed.out


def test_a_line_for_each_policy_and_step(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "4 files of rollouts" in said(capsys, "ls", "run")
    rows = json.loads(said(capsys, "ls", "run", "--policy", "bob", "--json"))["files"]
    assert [(row["policy"], row["step"], row["reward"]) for row in rows] == [("bob", 0, 3.5), ("bob", 1, 13.5)]


def test_rollouts_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]):
    text = said(capsys, "show", "run")
    assert text.count("task sums") == 10
    assert "10 of 32 rollouts; for more: --limit N" in text
    best = said(capsys, "show", "run", "--policy", "ann", "--step", "0", "--best", "--limit", "2")
    assert "1 file of rollouts" in best
    assert best.index("<ann7>") < best.index("<ann6>")
    assert "<ann5>" not in best
    worst = json.loads(said(capsys, "show", "run/rollouts/ann/000001.parquet", "--worst", "--limit", "1", "--json"))
    assert [(one["step"], one["reward"], one["transcript"]) for one in worst["rollouts"]] == [
        (1, 10.0, ["?", "<ann0>"])
    ]
    assert "for more" not in said(capsys, "show", "run", "--limit", "99")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "absent"], "error: absent: no such run, folder or file of rollouts"),
        (
            ["show", "run", "--policy", "carl"],
            "error: --policy: there are no rollouts of 'carl'; there are of ann, bob",
        ),
        (["show", "run", "--step", "9"], "error: --step: there are no rollouts of step 9; there are of 0 to 1"),
        (["show", "run", "--limit", "0"], "error: pefx rollouts show: --limit is 0; it must be at least 1"),
        (["show", "run", "--best", "--worst"], "error: pefx rollouts show: give --best or --worst, not both"),
        (["show"], "error: pefx: Missing from pefx rollouts show: PATH|RUN"),
        (["show", "run", "--step", "x"], "error: pefx: "),
        (["ls", "run", "--step", "1"], "error: pefx: "),
        ([], "error: pefx: Expected one of {ls, show}"),
    ],
)
def test_what_makes_no_sense(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    assert said(capsys, *words, code=2).startswith(message)
