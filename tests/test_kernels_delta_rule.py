"""A memory written by the delta rule, against a loop over tokens in numpy; its bits, however tokens are cut."""

import numpy as np
import pytest

from kernels.delta_rule.api import close
from kernels.delta_rule.reference import delta_rule as reference
from tests.delta_rule_cases import (
    CHAIN,
    COUNT,
    FORMS,
    GROUPS,
    NONE,
    RANK,
    STATES,
    TILE,
    case,
    empty,
    gradient,
    single,
    whole,
)

TO_THE_BIT = True

FORM = pytest.mark.parametrize("form", FORMS)


def written(gather: np.ndarray, commit: np.ndarray) -> list[bool]:
    """Which tokens write: those that commit, where something was gathered since the one before that did."""
    found, count = [], 0
    for gathers, commits in zip(gather, commit, strict=True):
        count += bool(gathers)
        found.append(bool(commits) and count > 0)
        count = 0 if found[-1] else count
    return found


@FORM
def test_values_are_those_of_the_loop(form):
    projected, gather, commit = case(form)
    found = whole(projected, gather, commit, empty(), CHAIN)
    read, state = reference(projected, gather, commit, np.zeros((STATES, RANK, RANK)))
    np.testing.assert_allclose(found.read, read, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.last[-1][:, :RANK], state, rtol=0, atol=1e-5)
    assert np.abs(read[5:]).max() > 0.1
    _, early = reference(projected[:21], gather[:21], commit[:21], np.zeros((STATES, RANK, RANK)))
    np.testing.assert_allclose(found.kept[20 // TILE][:, :RANK], early, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found.gates) > 0, written(gather, commit))


@FORM
def test_token_by_token_has_the_bits_of_tiles(form):
    projected, gather, commit = case(form)
    found = whole(projected, gather, commit, empty(), CHAIN)
    state, reads = empty(4), []
    for t in range(COUNT):
        step = single(*(np.stack([x[t]] * 4) for x in (projected, gather, commit)), state)
        reads.append(np.asarray(step.read[2]))
        state = np.asarray(step.last)
    np.testing.assert_array_equal(np.stack(reads), found.read)
    np.testing.assert_array_equal(state[0], found.last[-1])


def test_a_group_begins_where_it_is_said_to():
    projected, gather, commit = case("tokens")
    starts = np.random.default_rng(1).normal(size=empty().shape).astype(np.float32)
    starts[:, :, RANK:] = 0
    found = whole(projected, gather, commit, starts, NONE[:GROUPS])
    for group in range(GROUPS):
        here = slice(group * TILE, (group + 1) * TILE)
        read, state = reference(projected[here], gather[here], commit[here], starts[group, :, :RANK])
        np.testing.assert_allclose(found.read[here], read, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.last[group][:, :RANK], state, rtol=0, atol=1e-5)


def test_what_is_not_followed_does_not_matter():
    projected, gather, commit = case("tokens")
    starts = empty()
    starts[1:] = np.nan
    for x in whole(projected, gather, commit, starts, CHAIN):
        assert np.isfinite(np.asarray(x)).all()


@FORM
def test_gradients_are_those_of_small_changes(form):
    projected, gather, commit = case(form)
    direction = np.random.default_rng(2).normal(size=projected.shape)
    weights = np.random.default_rng(3).normal(size=(COUNT, STATES, RANK)).astype(np.float32)
    found = np.sum(np.asarray(gradient(projected, gather, commit, weights), np.float64) * direction)

    def moved(by):
        read, _ = reference(projected + by * direction, gather, commit, np.zeros((STATES, RANK, RANK)))
        return float(np.sum(read * weights))

    assert found == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-3)


def test_a_message_that_was_begun_is_written_in_the_end():
    projected, gather, _ = case("messages")
    held = whole(projected, gather, NONE, empty(), CHAIN).last[-1]
    _, want = reference(projected[:50], gather[:50], np.arange(50) == 49, np.zeros((STATES, RANK, RANK)))
    np.testing.assert_allclose(close(held[None])[0], want, rtol=0, atol=1e-5)
    done = whole(*case("tokens"), empty(), CHAIN).last[-1]
    np.testing.assert_array_equal(close(done[None])[0], done[:, :RANK])
