"""Intervals that know how sure they are; pages and pictures of studies."""

import numpy as np
import pytest

from pefx.config import TaskConfig, UserConfig
from pefx.sweeping.intervals import interval
from studies.rewarded.page import Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.runs import gain, heldout, of, seeded


def test_an_interval_holds_the_mean_of_its_population_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 1.0, (200, 12))
    held = [found.low <= 0.3 <= found.high for found in map(interval, samples)]
    assert 0.85 < np.mean(held) < 0.98  # percentile intervals of twelve are a little narrow
    found = interval([0.2, 0.4, 0.3])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.3)
    assert found.above_zero
    assert not interval([-0.1, 0.3, 0.1]).above_zero
    assert interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert str(interval([0.25, 0.25])) == "0.250 [0.250, 0.250]"
    for wrong in ([1.0], [], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="at least two finite numbers"):
            interval(wrong)


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
