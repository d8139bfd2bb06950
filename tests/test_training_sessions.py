"""Who takes part in which step, and with which numbers."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.config import (
    AdapterSpec,
    DataConfig,
    OptimizerConfig,
    PolicyLossConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.errors import PefxError
from pefx.training.sessions import HyperTable, Progress, Slices, make_sessions, take_turns


def config(*users: UserConfig, **fields: object) -> TrainConfig:
    return replace(TrainConfig(name="run", output="out", users=users), **fields)  # type: ignore[arg-type]


START = [Progress()] * 9
ANN, BOB, CAT = UserConfig("ann", "a.jsonl"), UserConfig("bob", "b.jsonl"), UserConfig("cat", "c.jsonl")


def test_a_user_overrides_the_run() -> None:
    special = replace(BOB, adapter=AdapterSpec(rank=4), optimizer=OptimizerConfig(learning_rate=1.0), seed=7, steps=3)
    ann, bob = make_sessions(config(ANN, special, steps=9, seed=2, accumulate=2))
    assert (ann.slot, ann.spec.rank, ann.seed, ann.steps, ann.micro_batches) == (0, 8, 2, 9, 18)
    assert (bob.slot, bob.spec.rank, bob.seed, bob.steps, bob.micro_batches) == (1, 4, 7, 3, 6)
    assert bob.optimizer.learning_rate == 1.0
    assert "b.jsonl" not in str(bob.provenance(config(ANN, special)))
    assert "task" not in bob.provenance(config(ANN, special))


@settings(max_examples=50, deadline=None)
@given(work=st.lists(st.integers(1, 9), min_size=1, max_size=7), width=st.integers(1, 4), accumulate=st.integers(1, 3))
def test_turns_give_everyone_exactly_its_work(work: list[int], width: int, accumulate: int) -> None:
    users = [UserConfig(f"user{index}", "x.jsonl", steps=steps) for index, steps in enumerate(work)]
    sessions = make_sessions(config(*users, accumulate=accumulate))
    turns = [turn for ((turn,), _) in take_turns(sessions, START, width)]
    assert turns == [turn for ((turn,), _) in take_turns(sessions, START, width)]
    assert all(1 <= len(turn) <= width and len(set(turn)) == len(turn) for turn in turns)
    counts = Counter(index for turn in turns for index in turn)
    assert [counts[index] for index in range(len(work))] == [steps * accumulate for steps in work]


def test_turns_are_even() -> None:
    sessions = make_sessions(config(ANN, BOB, CAT, steps=4))
    done = Counter()
    for (turn,), _ in take_turns(sessions, START, 2):
        done.update(turn)
        assert max(done.values()) - min(done[index] for index in range(3)) <= 1


@settings(max_examples=30, deadline=None)
@given(work=st.lists(st.integers(1, 6), min_size=1, max_size=6), width=st.integers(1, 3), cut=st.integers(0, 20))
def test_what_is_left_follows_from_where_they_stand(work: list[int], width: int, cut: int) -> None:
    sessions = make_sessions(config(*(UserConfig(f"user{i}", "x.jsonl", steps=n) for i, n in enumerate(work))))
    turns = take_turns(sessions, START, width)
    done = Counter(index for ((turn,), _) in turns[:cut] for index in turn)
    progress = [Progress(micro=done[index]) for index in range(len(work))]
    assert take_turns(sessions, progress, width) == turns[cut:]
    # With another number of shards the rest is dealt out anew, and still done exactly.
    dealt = make_sessions(config(*(session.user for session in sessions)), 2)
    anew = Counter(index for step in take_turns(dealt, progress, width, 2) for turn in step.active for index in turn)
    assert [done[i] + anew[i] for i in range(len(work))] == work


@settings(max_examples=60, deadline=None)
@given(
    work=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    width=st.integers(1, 3),
    slots=st.integers(1, 4),
    long=st.integers(1, 5),
    cut=st.integers(0, 40),
)
def test_in_time_slices_too(work: list[int], width: int, slots: int, long: int, cut: int) -> None:
    users = [UserConfig(f"user{index}", "x.jsonl", steps=steps) for index, steps in enumerate(work)]
    sessions = make_sessions(config(*users, slots=slots))
    assert sum(session.slot >= 0 for session in sessions) == min(slots, len(work))
    turns = take_turns(sessions, START, width, slices=Slices(slots, long))
    counts = Counter(index for ((turn,), _) in turns for index in turn)
    assert [counts[index] for index in range(len(work))] == work
    for step, ((active,), (resident,)) in enumerate(turns):
        assert set(active) <= set(resident)
        assert len(resident) <= slots
        if step % long:  # within a slice only those leave who are done
            gone = set(turns[step - 1].resident[0]) - set(resident)
            assert all(sum(one in turn for ((turn,), _) in turns[:step]) == work[one] for one in gone)
    # What is left follows from where they stand, and from who had the slots.
    cut = min(cut, len(turns))
    done = Counter(index for ((turn,), _) in turns[:cut] for index in turn)
    progress = [Progress(micro=done[index]) for index in range(len(work))]
    resident = turns[cut - 1].resident[0] if cut else ()
    assert take_turns(sessions, progress, width, slices=Slices(slots, long, cut, resident)) == turns[cut:]
    fewer = take_turns(sessions, progress, width, slices=Slices(1, long, cut, resident))
    assert all(len(turn.resident[0]) == 1 for turn in fewer)
    assert sum(len(turn.active[0]) for turn in fewer) == sum(len(turn.active[0]) for turn in turns[cut:])


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_have_turns_of_their_own(shards: int) -> None:
    work = [3, 5, 2, 4, 1]
    users = [UserConfig(f"user{index}", "x.jsonl", steps=steps) for index, steps in enumerate(work)]
    sessions = make_sessions(config(*users), shards)
    assert len({(s.shard, s.slot) for s in sessions}) == len(sessions)
    assert max(s.slot for s in sessions) < -(-len(users) // shards)
    steps = take_turns(sessions, START, 1, shards)
    assert all(len(step.active) == shards for step in steps)
    for shard in range(shards):
        own = [s for s in sessions if s.shard == shard]
        counts = Counter(index for step in steps for index in step.active[shard])
        assert {users[i].name: n for i, n in counts.items()} == {s.policy: s.steps for s in own}


def test_hyper_numbers_follow_the_update_not_the_micro_batch() -> None:
    fast = replace(BOB, optimizer=OptimizerConfig(learning_rate=1.0, weight_decay=0.5, clip=3.0))
    sessions = make_sessions(config(ANN, fast, CAT, steps=4, accumulate=2))
    rates = [np.linspace(1, 2, 4, dtype=np.float32) + index for index in range(3)]
    table = HyperTable(sessions, rates, 3)
    progress = [Progress(), Progress(micro=3), Progress()]
    fields = table.fields((0, 1), progress, 3)
    assert fields["slots"].tolist() == [0, 1, 3]
    assert fields["apply"].tolist() == [False, True, False]
    assert fields["weight_decay"].tolist()[:2] == [0.0, 0.5]
    assert fields["clip"].tolist()[:2] == [1.0, 3.0]
    assert table.rate(1, 2) == table.rate(1, 3) != table.rate(1, 4)
    assert fields["learning_rate"][1] == table.rate(1, 3)
    # Alone, a session reads the same numbers.
    alone = HyperTable(sessions[1:2], rates[1:2], 3).fields((0,), progress[1:2], 1)
    assert all(alone[name][0] == fields[name][1] for name in fields)


def test_bad_configs_name_the_field() -> None:
    for bad, message in [
        (config(), "'users' is empty"),
        (config(ANN, ANN), r"'users\.1\.name': 'ann' is also users\.0"),
        (config(ANN, accumulate=0), "'accumulate' is 0"),
        (config(replace(ANN, steps=0)), "user 'ann' is 0"),
        (config(ANN, data=DataConfig(users_per_step=0)), r"'data\.users_per_step' is 0"),
    ]:
        with pytest.raises(PefxError, match=message):
            make_sessions(bad)


def test_a_rewarded_session_says_what_for() -> None:
    run = config(UserConfig("eve", task=TaskConfig("sorting"), policy_loss=PolicyLossConfig("dapo")))
    (eve,) = make_sessions(run)
    told = eve.provenance(run)
    assert (told["task"]["name"], told["policy_loss"]["name"], told["rollout"]["group"]) == ("sorting", "dapo", 8)
    assert json.loads(json.dumps(told)) == told
