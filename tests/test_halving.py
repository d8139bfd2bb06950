"""Who goes on after a rung, and how far."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import HalvingConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.training.halving import Halving, worth
from pefx.training.sessions import Progress, Session, make_sessions, take_turns


def sessions(count: int, shards: int = 1) -> list[Session]:
    users = tuple(UserConfig(f"user{index}", "x.jsonl") for index in range(count))
    return make_sessions(TrainConfig("run", "out", users=users, steps=9, accumulate=2), shards)


def scores(*values: float) -> dict[str, float]:
    return {f"user{index}": float(value) for index, value in enumerate(values)}


def test_without_rungs_all_go_to_their_end():
    halving = Halving(None, sessions(3))
    assert (halving.going, halving.rung, halving.limits) == ([0, 1, 2], None, [18, 18, 18])


def test_cells_stop_by_their_mean_over_seeds():
    halving = Halving(HalvingConfig((2, 4), 0.5, 2), sessions(6))
    assert (halving.rung, halving.limits) == (2, [4] * 6)
    # Means of cells: 2, 3, 1; the half of three cells is two, rounded up.
    assert halving.decide(scores(0, 4, 3, 3, 1, 1), "nats_per_token") == {"user2": 2, "user3": 2}
    assert (halving.going, halving.rung, halving.limits) == ([0, 1, 4, 5], 4, [8, 8, 4, 4, 8, 8])
    assert halving.decide(scores(0, 4, 9, 9, 1, 1), "reward") == {"user4": 4, "user5": 4}
    assert (halving.going, halving.rung, halving.limits) == ([0, 1], None, [18, 18, 4, 4, 8, 8])
    anew = Halving(HalvingConfig((2, 4), 0.5, 2), sessions(6))
    anew.go_on(halving.host())
    assert (anew.going, anew.limits, anew.host()) == (halving.going, halving.limits, halving.host())


def test_of_equals_the_first_goes_on_and_what_is_no_number_never():
    halving = Halving(HalvingConfig((2,), 0.5, 1), sessions(4))
    assert set(halving.decide(scores(math.nan, 1.0, 1.0, 1.0), "nats_per_token")) == {"user0", "user3"}
    assert worth(math.nan, "reward") < worth(-1e30, "reward")


def test_as_many_go_on_as_a_person_would_count():
    halving = Halving(HalvingConfig((2,), 0.55, 1), sessions(20))
    halving.decide(scores(*range(20)), "reward")
    assert halving.going == list(range(9, 20))


def test_a_session_of_which_nothing_is_held_out_is_told():
    with pytest.raises(PefxError, match="nothing is held out of 'user1'"):
        Halving(HalvingConfig((2,), 0.5, 1), sessions(2)).decide(scores(1.0), "reward")


@given(keep=st.floats(0.05, 0.95), width=st.integers(1, 4), shards=st.integers(1, 3), values=st.permutations(range(5)))
def test_those_who_go_on_do_exactly_their_work(keep: float, width: int, shards: int, values: list[int]):
    own = sessions(5, shards)
    halving, done = Halving(HalvingConfig((1, 3), keep, 1), own), [Progress()] * 5
    while True:
        limits = halving.limits
        for step in take_turns(own, done, width, shards, limits=limits):
            for index in (index for indices in step.active for index in indices):
                done[index] = done[index].after(0)
        assert [one.micro for one in done] == limits
        if halving.rung is None:
            break
        halving.decide(scores(*values), "reward")
    last = [index for index, one in enumerate(done) if one.micro == 18]
    assert last == halving.going
    assert values.index(4) in last
