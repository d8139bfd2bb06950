"""Rows of runs, pages and pictures of studies."""

from pefx.config import TaskConfig, UserConfig
from pefx.sweeping.intervals import interval
from studies.rewarded.page import Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.runs import gain, heldout, of, seeded


def test_rows_are_read_by_policy() -> None:
    users = seeded([UserConfig("ann", task=TaskConfig("sorting"))], 2)
    assert [(user.name, user.seed) for user in users] == [("ann/0", 0), ("ann/1", 1)]
    rows = [
        {"step": 0, "kind": "heldout", "name": "ann/0", "reward": 0.25},
        {"step": 1, "kind": "train", "name": "ann/0", "reward": 0.5, "kl_k3": 0.0},
        {"step": 1, "kind": "train", "name": "ann/1", "reward": 0.9, "kl_k3": 1.0},
        {"step": 1, "kind": "heldout", "name": "ann/0", "reward": 1.0},
    ]
    assert heldout(rows, "ann/0") == [(0, 0.25), (1, 1.0)]
    assert gain(rows, "ann/0") == 0.75
    assert of(rows, "ann/1", "kl_k3") == [1.0]


def test_a_page_says_what_made_it(tmp_path) -> None:
    text = ["What is asked.", table(("a", "b"), [["1", "2"], ["3", "4"]]), "What was found."]
    path = Page("study", "A study", "python -m studies.study", 6, text, "study.png").write(tmp_path)
    lines = path.read_text().splitlines()
    assert lines[0] == "# A study"
    assert lines[4].startswith("Made by `python -m studies.study` at ")
    assert "6 seeds" in lines[4]
    assert "![A study](study.png)" in lines
    assert lines[8:12] == ["| a | b |", "| --- | --- |", "| 1 | 2 |", "| 3 | 4 |"]


def test_a_picture_is_drawn(tmp_path) -> None:
    found = interval([0.1, 0.2, 0.3])
    bars({"gain": {"ann": {"before": found, "after": found}, "bob": {"after": found}}}, tmp_path / "bars.png", "Bars")
    assert (tmp_path / "bars.png").stat().st_size > 5_000
