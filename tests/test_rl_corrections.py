"""Corrections against plain loops in float64: weights, what is rejected, and the table on its page."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.losses.rows import Old
from pefx.rl.corrections import CORRECTIONS, LEAST, MOST, correct, correction

CASES: list[tuple[str, Old]] = [(name, old) for name in CORRECTIONS for old in ("trainer", "proximal")]


def by_hand(name, old, sampler, sampled, proximal=False, bounds=None) -> list[float]:
    """The formula that `name` stands for, token by token; 0 where rejected or not drawn."""
    low, high = (
        bounds
        or {
            "none": (0, math.inf),
            "tis": (0, 2),
            "seq_tis": (0, 2),
            "mis": (0.5, 2),
            "seq_mis": (0.5, 2),
            "icepop": (0.5, 5),
            "geo_rs": (0.999, 1.001),
            "k3": (0, 0.01),
        }[name]
    )
    drawn = [i for i in range(len(sampled)) if sampled[i]]
    logs = {i: float(old[i]) - float(sampler[i]) for i in drawn}
    total = math.fsum(logs.values())
    found = [0.0] * len(sampled)
    for i in drawn:
        rho, product = math.exp(logs[i]), math.exp(total)
        if name == "none":
            weight, keep = 1.0, True
        elif name == "tis":
            weight, keep = min(rho, high), True
        elif name == "seq_tis":
            weight, keep = min(product, high), True
        elif name in ("mis", "icepop"):
            weight, keep = rho, low <= rho <= high
        elif name == "seq_mis":
            weight, keep = product, low <= product <= high
        elif name == "geo_rs":
            weight, keep = 1.0, low <= math.exp(total / len(drawn)) <= high
        else:
            weight, keep = 1.0, math.fsum(math.exp(x) - x - 1 for x in logs.values()) / len(drawn) <= high
        if proximal and name in ("none", "geo_rs", "k3"):
            weight = rho
        found[i] = min(max(weight, math.exp(-20)), math.exp(20)) if keep else 0.0
    return found


@st.composite
def answers(draw):
    """Log-probabilities of trainer and sampler and which tokens were drawn; what was not drawn may hold anything."""
    size = draw(st.integers(0, 12))
    sampled = np.asarray(draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)
    width = draw(st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 3.0, 30.0]))
    gaps = draw(st.lists(st.floats(-1, 1), min_size=size, max_size=size))
    sampler = -np.asarray(draw(st.lists(st.floats(0, 12, width=32), min_size=size, max_size=size)), np.float32)
    old = (sampler + np.float32(width) * np.asarray(gaps, np.float32)).astype(np.float32)
    return np.where(sampled, old, np.float32(np.nan)), np.where(sampled, sampler, np.float32(7)), sampled


@given(answer=answers())
def test_as_by_hand(answer):
    for name, old in CASES:
        weights, rejected = correct(correction(name, old), *answer)
        expected = by_hand(name, *answer, proximal=old == "proximal")
        np.testing.assert_allclose(weights, np.asarray(expected, np.float32), rtol=3e-6, err_msg=f"{name}, {old}")
        np.testing.assert_array_equal(rejected, answer[2] & (weights == 0))
        assert not weights[~answer[2]].any()


@given(sampled=st.lists(st.booleans(), max_size=20))
def test_without_mismatch_all_weigh_exactly_one(sampled):
    drawn = np.asarray(sampled, np.bool_)
    logprobs = np.linspace(-9, 0, len(drawn), dtype=np.float32)
    for name, old in CASES:
        weights, rejected = correct(correction(name, old), logprobs, logprobs, drawn)
        np.testing.assert_array_equal(weights, drawn.astype(np.float32))
        assert not rejected.any()


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name not in ("none", "tis", "seq_tis")])
def test_all_may_be_rejected(name):
    sampled = np.array([False, True, True])
    for gap in (-700.0, -30.0, 30.0, 800.0):
        old, sampler = np.array([0, gap, gap], np.float32), np.zeros(3, np.float32)
        weights, rejected = correct(correction(name, "trainer"), old, sampler, sampled)
        assert not weights.any()
        np.testing.assert_array_equal(rejected, sampled)


@pytest.mark.parametrize("gap", [-800.0, -50.0, 50.0, 800.0])
def test_no_weight_leaves_what_a_float_can_say_and_none_reads_as_rejected(gap):
    old, sampler, sampled = np.array([gap], np.float32), np.zeros(1, np.float32), np.ones(1, np.bool_)
    for name, high in (("none", MOST), ("tis", 2.0), ("seq_tis", 2.0)):
        weights, rejected = correct(correction(name, "proximal"), old, sampler, sampled)
        np.testing.assert_allclose(weights, [LEAST if gap < 0 else high], rtol=1e-6)
        assert not rejected.any()


def test_a_sequence_is_rejected_as_a_whole_and_a_token_alone():
    old, sampler = np.log(np.array([1, 8, 1], np.float32)), np.zeros(3, np.float32)
    sampled = np.ones(3, np.bool_)
    assert correct(correction("icepop", "trainer"), old, sampler, sampled)[1].tolist() == [False, True, False]
    for name in ("seq_mis", "geo_rs", "k3"):
        assert correct(correction(name, "trainer"), old, sampler, sampled)[1].all(), name


@given(answer=answers(), low=st.floats(0, 1), high=st.floats(1, 9))
def test_bounds_may_be_given(answer, low, high):
    for name in ("tis", "mis", "seq_mis", "geo_rs", "k3"):
        row = correction(name, "trainer", None if name in ("tis", "k3") else low, high)
        expected = by_hand(name, *answer, bounds=(low, high))
        np.testing.assert_allclose(correct(row, *answer)[0], np.asarray(expected, np.float32), rtol=3e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ice", "trainer"), "no correction 'ice'; there are none, tis"),
        (("none", "trainer", None, 2.0), "'none' has no bounds"),
        (("mis", "trainer", 3.0), "'mis' has bounds 3 and 2; 0 <= low <= high is wanted"),
        (("tis", "trainer", None, 0.0), "'tis' has bounds 0 and 0"),
        (("tis", "trainer", None, math.nan), "'tis' has bounds 0 and nan"),
        (("tis", "sampler"), "this loss has 'sampler': take one of none, geo_rs, k3"),
        (("seq_mis", "base"), "this loss has 'base'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(PefxError, match=message):
        correction(*arguments)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_probability_that_is_no_number_is_refused(bad):
    sampled = np.array([False, True, True])
    with pytest.raises(PefxError, match=r"token 2 has log-probabilities .* \(trainer\) and -1.0 \(sampler\)"):
        correct(CORRECTIONS["mis"], np.array([bad, -1, bad], np.float32), np.array([bad, -1, -1], np.float32), sampled)


def test_the_page_has_the_same_table():
    page = (Path(__file__).parent.parent / "docs" / "rl_correction.md").read_text(encoding="utf-8").splitlines()
    start = page.index("## Corrections")
    lines = [line for line in page[start : page.index("## Routes")] if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    numbers = {
        name: ", ".join(
            f"{side} {value:g}" for side, value in (("low", row.low), ("high", row.high)) if 0 < value < np.inf
        )
        for name, row in CORRECTIONS.items()
    }
    assert cells == [[f"`{name}`", f"`{row.formula}`", numbers[name], row.source] for name, row in CORRECTIONS.items()]
