"""Sampling: what may be drawn, how often, and that a draw depends on its own row, seed and position only."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.compiler import jit
from pefx.sampling import Sampling, Shaping, sample, shaped

ROWS, VOCABULARY = 256, 9
LOGITS = np.random.default_rng(3).permutation(np.linspace(-2, 2, VOCABULARY)).astype(np.float32)
ORDER = np.argsort(-LOGITS)
PROBABILITY = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()

_sample, _shaped = jit(sample), jit(shaped)


def how(temperature: Any = 1.0, top_p: Any = 1.0, top_k: Any = 0, seed: Any = None, min_p: Any = 0.0) -> Sampling:
    def rows(value, dtype) -> Any:
        return np.broadcast_to(np.asarray(value, dtype), ROWS).copy()

    seeds = np.arange(ROWS) if seed is None else seed
    temperatures, tops, least = (rows(value, np.float32) for value in (temperature, top_p, min_p))
    return Sampling(temperatures, tops, least, rows(top_k, np.int32), rows(seeds, np.uint32))


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


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_min_p_leaves_what_is_likely_enough_beside_the_likeliest(share):
    want = {i for i in range(VOCABULARY) if PROBABILITY[i] >= share * PROBABILITY.max() * (1 - 1e-6)}
    seen = set(draw(how(min_p=share))) | set(draw(how(min_p=share), positions=1))
    assert seen <= want
    assert len(seen) >= min(len(want), 5)


def test_a_row_without_limits_draws_the_same_beside_one_that_has_them():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(ROWS, VOCABULARY)).astype(np.float32) * 30  # a long tail of next to nothing
    alone = draw(how(9.0), logits=logits)
    limits = np.where(np.arange(ROWS) % 2, 1.0, 0.5)
    np.testing.assert_array_equal(draw(how(9.0, top_p=limits), logits=logits)[1::2], alone[1::2])


def plain_shaped(row: np.ndarray, tokens: Any, repeat: Any, add: Any, allowed: set[int]) -> np.ndarray:
    out = row.copy()
    for token, r, a in zip(tokens, repeat, add):
        if token >= 0:
            out[token] = (row[token] / r if row[token] > 0 else row[token] * r) + a
    return np.array([x if i in allowed else -np.inf for i, x in enumerate(out)], np.float32)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 80))
def test_shaping_is_what_its_formula_says(seed, vocabulary):
    rng = np.random.default_rng(seed)
    rows, some, named = 5, 3, min(4, vocabulary)
    logits = rng.normal(size=(rows, vocabulary)).astype(np.float32)
    tokens = np.stack([rng.permutation(vocabulary)[:named] for _ in range(some)]).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.3] = -1
    repeat = rng.uniform(0.5, 2, tokens.shape).astype(np.float32)
    add = rng.normal(size=tokens.shape).astype(np.float32)
    allowed = [set(rng.permutation(vocabulary)[: rng.integers(1, vocabulary + 1)].tolist()) for _ in range(some)]
    words = np.zeros((some, -(-vocabulary // 32)), np.uint32)
    for row, tokens_of_row in zip(words, allowed):
        for token in tokens_of_row:
            row[token // 32] |= np.uint32(1 << token % 32)
    got = np.asarray(_shaped(logits, Shaping(tokens, repeat, add, words)))
    want = [plain_shaped(logits[i], tokens[i], repeat[i], add[i], allowed[i]) for i in range(some)]
    np.testing.assert_allclose(got[:some], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got[some:], logits[some:])


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
