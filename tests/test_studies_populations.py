"""Parts of studies of populations: what is learned, which rate is chosen, how far seeds lie apart."""

import json

import numpy as np
import pytest

from pefx.config import AdapterSpec, TaskConfig
from pefx.sweeping.intervals import Interval
from studies.populations.cells import Cell, better, grid, matched, shown
from studies.populations.pictures import apart
from studies.populations.rates import at_rate, best_rate, slope
from studies.populations.spread import best_seed, spread, wider
from studies.populations.texts import corpus
from studies.populations.verdicts import verdict

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def test_the_parts_of_a_corpus_never_meet_and_follow_from_the_task(tmp_path):
    task = TaskConfig("edits", level=2, seed=3)
    parts = corpus(tmp_path / "one", task, 60, 20)
    again = corpus(tmp_path / "other", task, 60, 20)
    assert [path.read_text() for path in parts] == [path.read_text() for path in again]
    prompts = [{json.loads(line)["prompt"] for line in path.read_text().splitlines()} for path in parts]
    assert [len(own) for own in prompts] == [60, 20, 20]
    assert len(set.union(*prompts)) == 100


@pytest.mark.parametrize("best", [1.6e-3, 2e-3, 3.1e-3, 4.9e-3])
def test_the_best_rate_of_a_parabola_is_found_between_those_that_were_tried(best):
    losses = [(np.log2(rate / best)) ** 2 for rate in RATES]
    assert best_rate(RATES, losses) == pytest.approx(best)


@pytest.mark.parametrize(("losses", "found"), [((1.0, 2.0, 3.0, 4.0), 1e-3), ((4.0, 3.0, 2.0, 1.0), 8e-3)])
def test_a_best_rate_at_an_end_stays_there(losses, found):
    assert best_rate(RATES, losses) == found


def test_between_rates_a_loss_is_on_a_line_and_beyond_them_that_of_the_end():
    losses = (3.0, 2.0, 1.0, 5.0)
    assert at_rate(RATES, losses, 2e-3) == 2.0
    assert at_rate(RATES, losses, 4e-3 * 2**0.5) == pytest.approx(3.0)
    assert at_rate(RATES, losses, 1.0) == 5.0


def test_the_slope_counts_doublings():
    assert slope((1, 8, 64), [8e-3, 1e-3, 1.25e-4]) == pytest.approx(-1.0)


def test_a_case_has_the_rate_that_is_best_on_average():
    cells = grid({"a": AdapterSpec(), "b": AdapterSpec(rank=1)}, (1.0, 2.0, 3.0))
    marks = dict(zip(cells, ((1.0, 1.0), (0.0, 0.5), (2.0, 0.0), (3.0, 3.0), (4.0, 4.0), (5.0, 5.0)), strict=True))
    assert {case: cell.rate for case, cell in matched(marks, more=False).items()} == {"a": 2.0, "b": 1.0}
    assert {case: cell.rate for case, cell in matched(marks, more=True).items()} == {"a": 1.0, "b": 3.0}
    assert [shown(cell, marks) for cell in cells[:3]] == ["1 (edge)", "2", "3 (edge)"]


def test_labels_have_room():
    assert apart([64, 1, 8, 8.5, 9, 12.5]) == [1, 8, 12.5, 64]
    assert apart([1, 2, 4]) == [1, 2, 4]


def test_a_case_may_be_tried_at_rates_of_its_own():
    found = grid({"a": AdapterSpec(), "b": AdapterSpec(rank=1)}, (1.0, 2.0), {"b": -1})
    assert [(cell.case, cell.rate) for cell in found] == [("a", 1.0), ("a", 2.0), ("b", 0.25), ("b", 0.5)]


def test_seeds_are_compared_with_themselves():
    assert better((3.0, 5.0), (1.0, 6.0), more=True) == [2.0, -1.0]
    assert better((3.0, 5.0), (1.0, 6.0), more=False) == [-2.0, 1.0]


def test_the_best_seed_is_chosen_on_one_part_and_reported_on_the_other():
    assert best_seed((0.1, 0.9, 0.5), (7.0, 8.0, 9.0), more=True) == 8.0
    assert best_seed((0.1, 0.9, 0.5), (7.0, 8.0, 9.0), more=False) == 7.0


def test_the_spread_is_a_standard_deviation_with_its_interval():
    found = spread([1.0, 2.0, 3.0, 4.0])
    assert found.mean == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    assert 0 <= found.low < found.mean < found.high
    assert spread([1.0, 1.0, 1.0]) == (0.0, 0.0, 0.0)


def test_a_policy_is_named_by_case_rate_and_seed():
    assert Cell("r1", AdapterSpec(), 4e-3).policy(2) == "r1-lr0.004/2"


def test_a_wider_spread_counts_doublings():
    narrow = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]
    found = wider([4 * value for value in narrow], narrow)
    assert found == pytest.approx((2.0, 2.0, 2.0))


def test_a_verdict_is_by_the_interval():
    said = [verdict(Interval(x, x - 1, x + 1), "above", "below", "neither") for x in (2.0, -2.0, 0.5)]
    assert said == ["above", "below", "neither"]
