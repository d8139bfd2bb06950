"""Advantages against plain loops over groups: any rewards, any order, groups of one, rollouts without a reward."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.losses.rows import Advantage
from pefx.rl.advantages import even, grade, overlong

NAN = math.nan
KINDS = get_args(Advantage)
rewards = st.one_of(st.sampled_from([0.0, 1.0, 0.1, -1.0, NAN, math.inf]), st.floats(-100, 100))
batches = st.lists(st.tuples(rewards, st.integers(0, 3)), max_size=12)


def arrays(batch):
    return np.asarray([r for r, _ in batch], np.float64), np.asarray([g for _, g in batch], np.int64)


def by_hand(batch, kind) -> list[float]:
    """0 for what has no reward, or no place in a pair."""
    found = [0.0] * len(batch)
    known = [i for i, (reward, _) in enumerate(batch) if math.isfinite(reward)]
    for i in known:
        group = [batch[j][0] for j in known if batch[j][1] == batch[i][1]]
        mean = math.fsum(group) / len(group)
        spread = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / len(group))
        if kind in ("group_centred", "batch_normalised"):
            found[i] = batch[i][0] - mean
        elif kind in ("group_normalised", "context"):
            found[i] = (batch[i][0] - mean) / (spread + 1e-6)
        elif kind == "preference" and max(group) > min(group):
            peers = [j for j in known if batch[j][1] == batch[i][1]]
            first_best = next(j for j in peers if batch[j][0] == max(group))
            first_worst = next(j for j in peers if batch[j][0] == min(group))
            found[i] = (i == first_best) - float(i == first_worst)
    if kind == "batch_normalised" and known:
        mean = math.fsum(found[i] for i in known) / len(known)
        spread = math.sqrt(math.fsum((found[i] - mean) ** 2 for i in known) / len(known))
        for i in known:
            found[i] = (found[i] - mean) / (spread + 1e-6)
    return found


@settings(max_examples=300)
@given(batch=batches, kind=st.sampled_from(KINDS))
def test_as_by_hand(batch, kind):
    graded = grade(*arrays(batch), kind)
    # Of rewards that differ by less than they round to, no formula says more than a millionth.
    np.testing.assert_allclose(graded.advantages, by_hand(batch, kind), rtol=1e-6, atol=1e-7)
    known = np.isfinite(arrays(batch)[0])
    assert not graded.advantages[~graded.taken].any()
    if kind != "preference":
        np.testing.assert_array_equal(graded.taken, known)
        assert (graded.partners == -1).all()
        return
    np.testing.assert_array_equal(graded.taken, graded.advantages != 0)
    np.testing.assert_array_equal(graded.taken, graded.partners >= 0)
    for i in np.flatnonzero(graded.taken):
        other = graded.partners[i]
        assert graded.partners[other] == i
        assert batch[other][1] == batch[i][1]
        assert graded.advantages[other] == -graded.advantages[i]


@given(batch=batches, kind=st.sampled_from(KINDS))
def test_a_rollout_without_reward_is_as_if_it_was_not_there(batch, kind):
    graded = grade(*arrays(batch), kind)
    known = np.flatnonzero(np.isfinite(arrays(batch)[0]))
    alone = grade(*arrays([batch[i] for i in known]), kind)
    assert graded.advantages[known].tobytes() == alone.advantages.tobytes()
    assert not graded.taken[np.setdiff1d(np.arange(len(batch)), known)].any()


@given(reward=st.floats(-1e6, 1e6), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_equal_rewards_teach_exactly_nothing(reward, sizes):
    batch = [(reward, group) for group, size in enumerate(sizes) for _ in range(size)]
    for kind in KINDS:
        assert not grade(*arrays(batch), kind).advantages.any(), kind
    assert even(*arrays(batch)).all()


@given(batch=batches)
def test_even_groups_are_those_without_two_rewards(batch):
    expected = [len({r for r, other in batch if other == group and math.isfinite(r)}) < 2 for _, group in batch]
    assert even(*arrays(batch)).tolist() == expected


def test_a_pair_is_the_first_best_and_the_first_worst():
    graded = grade(np.array([0.5, 0.0, 1.0, 0.0, NAN, 1.0]), np.array([7, 7, 7, 7, 7, 7]), "preference")
    assert graded.advantages.tolist() == [0, -1, 1, 0, 0, 0]
    assert graded.partners.tolist() == [-1, 2, 1, -1, -1, -1]


def test_a_group_of_four_by_numbers():
    graded = grade(np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(4, np.int64), "group_normalised")
    np.testing.assert_allclose(graded.advantages, [0.999998, -0.999998, -0.999998, 0.999998], rtol=1e-9)


@pytest.mark.parametrize(
    ("length", "buffer", "expected"),
    [
        (0, 4, 0),
        (6, 4, 0),
        (7, 4, -0.25),
        (8, 4, -0.5),
        (10, 4, -1),
        (11, 4, -1),
        (10, 0, 0),
        (11, 0, -1),
        (5, 10, -0.5),
    ],
)
def test_an_answer_that_runs_long_pays(length, buffer, expected):
    assert overlong(length, 10, buffer) == expected


@pytest.mark.parametrize("buffer", [-1, 11])
def test_a_buffer_beyond_the_answer_is_refused(buffer):
    with pytest.raises(PefxError, match=f"{buffer} tokens; it must be from 0 to 10"):
        overlong(5, 10, buffer)
