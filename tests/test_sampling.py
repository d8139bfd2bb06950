"""Sampling: what may be drawn, how often, and that a draw depends on its own row, seed and position only."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.compiler import jit
from pefx.sampling import Sampling, sample

ROWS, VOCABULARY = 256, 9
LOGITS = np.random.default_rng(3).permutation(np.linspace(-2, 2, VOCABULARY)).astype(np.float32)
ORDER = np.argsort(-LOGITS)
PROBABILITY = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()

_sample = jit(sample)


def how(temperature: Any = 1.0, top_p: Any = 1.0, top_k: Any = 0, seed: Any = None) -> Sampling:
    def rows(value, dtype) -> Any:
        return np.broadcast_to(np.asarray(value, dtype), ROWS).copy()

    seeds = np.arange(ROWS) if seed is None else seed
    return Sampling(
        rows(temperature, np.float32), rows(top_p, np.float32), rows(top_k, np.int32), rows(seeds, np.uint32)
    )


def draw(settings: Sampling, positions: Any = 0, logits=LOGITS) -> np.ndarray:
    logits = np.broadcast_to(logits, (ROWS, VOCABULARY)).copy()
    return np.asarray(_sample(logits, settings, np.broadcast_to(np.asarray(positions, np.int32), ROWS).copy()))


def test_temperature_zero_is_greedy_whatever_else_is_asked():
    logits = np.random.default_rng(0).normal(size=(ROWS, VOCABULARY)).astype(np.float32)
    greedy = logits.argmax(-1)
    np.testing.assert_array_equal(draw(how(0.0), logits=logits), greedy)
    np.testing.assert_array_equal(draw(how(0.0, top_p=0.3, top_k=4), logits=logits), greedy)
    mixed = np.where(np.arange(ROWS) % 2, 0.0, 5.0)
    drawn = draw(how(mixed), logits=logits)
    np.testing.assert_array_equal(drawn[1::2], greedy[1::2])
    assert (drawn[::2] != greedy[::2]).sum() > ROWS // 4


@pytest.mark.parametrize("k", [1, 2, 5, VOCABULARY, 1000])
def test_top_k_draws_all_of_the_k_likeliest_and_nothing_else(k):
    assert set(draw(how(3.0, top_k=k))) == set(ORDER[:k])


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_top_p_draws_from_the_smallest_set_that_reaches_p(p):
    count = max(1, int((np.cumsum(PROBABILITY[ORDER]) - PROBABILITY[ORDER] < p).sum()))
    assert 1 <= count <= VOCABULARY
    seen = set(draw(how(top_p=p))) | set(draw(how(top_p=p), positions=1))
    assert seen <= set(ORDER[:count])
    assert len(seen) >= min(count, 6)


def test_top_p_counts_within_top_k_and_after_temperature():
    # Of the three likeliest at a low temperature, the first alone has more than half.
    assert set(draw(how(0.25, top_p=0.5, top_k=3))) == {ORDER[0]}
    # At a high one the three are nearly even: half needs two of them.
    assert set(draw(how(50.0, top_p=0.5, top_k=3))) == set(ORDER[:2])


def test_ties_at_the_threshold_stay():
    logits = np.zeros(VOCABULARY, np.float32)
    logits[0] = 1
    assert set(draw(how(top_k=2), logits=logits)) == set(range(VOCABULARY))


@settings(max_examples=20)
@given(st.integers(0, 99))
def test_a_sample_depends_on_its_own_row_seed_and_position(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, VOCABULARY)).astype(np.float32)
    asked = how(
        rng.uniform(0, 2, ROWS), rng.uniform(0.2, 1, ROWS), rng.integers(0, 5, ROWS), rng.integers(0, 2**32, ROWS)
    )
    positions = rng.integers(0, 1000, ROWS)
    once = draw(asked, positions, logits)
    order = rng.permutation(ROWS)
    moved = draw(Sampling(*(x[order] for x in asked)), positions[order], logits[order])
    np.testing.assert_array_equal(moved, once[order])
    others = rng.normal(size=(ROWS, VOCABULARY)).astype(np.float32)
    others[0] = logits[0]
    company = how(np.append(asked.temperature[0], np.zeros(ROWS - 1)), asked.top_p, asked.top_k, asked.seed)
    assert draw(company, positions, others)[0] == once[0]


def test_positions_and_seeds_give_new_draws():
    by_seed = draw(how(2.0))
    by_position = draw(how(2.0, seed=7), positions=np.arange(ROWS))
    assert len(set(by_seed)) == len(set(by_position)) == VOCABULARY
    assert len(set(draw(how(2.0, seed=7)))) == 1
    assert (by_seed != by_position).mean() > 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    counts = np.zeros(VOCABULARY)
    for position in range(16):
        counts += np.bincount(draw(how(temperature), position), minlength=VOCABULARY)
    want = np.exp(LOGITS.astype(np.float64) / temperature)
    want *= counts.sum() / want.sum()
    # Pearson's statistic: chance exceeds 27.9 once in two thousand with 8 degrees of freedom.
    assert ((counts - want) ** 2 / want).sum() < 27.9
