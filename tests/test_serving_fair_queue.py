"""pefx.serving.fair_queue: service is even among tenants that want it, and nobody is forgotten."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.fair_queue import FairQueue, Queue
from pefx.serving.generation import Generation
from pefx.serving.sequence import Sampling, Sequence
from tests.serving_fakes import revision


def sequence(arrival: int, policy: str, priority: int = 0) -> Sequence:
    generation = Generation(lambda ids: "", 1, (), frozenset())
    made = Sequence(arrival, [1], revision(policy), Sampling(0.0, 1.0, 0.0, 0, 0), generation, 1, priority=priority)
    made.arrival = arrival
    return made


def anything(revision: Any) -> bool:
    return True


def room() -> bool:
    return False


def order(queue: FairQueue) -> list[int]:
    return [sequence.arrival for sequence in queue.turns(anything, room)]


def test_tenants_take_turns_by_what_they_got():
    queue, served = FairQueue(), []
    for arrival in range(6):
        queue.push(sequence(arrival, "flood"))
    queue.push(sequence(6, "quiet"))
    for one in queue.turns(anything, room):
        queue.enter(one, 10)
        served.append(one.arrival)
    assert served == [0, 6, 1, 2, 3, 4, 5]


def test_a_long_answer_is_paid_for():
    queue = FairQueue()
    first, second = sequence(0, "a"), sequence(1, "b")
    for one in (first, second):
        queue.push(one)
        queue.enter(one, 1)
    queue.charge(first, 100)
    queue.charge(second, 1)
    for arrival, policy in ((2, "a"), (3, "b")):
        queue.push(sequence(arrival, policy))
    assert order(queue) == [3, 2]


def test_priority_comes_before_fairness():
    queue = FairQueue()
    queue.push(sequence(0, "a"))
    queue.push(sequence(1, "b", priority=1))
    queue.push(sequence(2, "a", priority=2))
    queue.push(sequence(3, "a", priority=1))
    assert order(queue) == [2, 1, 3, 0]


def test_who_was_away_has_no_credit():
    queue = FairQueue()
    steady = sequence(0, "steady")
    queue.push(steady)
    queue.enter(steady, 1000)
    for arrival in range(1, 4):
        queue.push(sequence(arrival, "late"))
        queue.push(sequence(10 + arrival, "steady"))
    entered = []
    for one in queue.turns(anything, room):
        queue.enter(one, 10)
        entered.append(one.tenant)
    assert entered[:4] in (["late", "steady", "late", "steady"], ["steady", "late", "steady", "late"])


def test_what_was_preempted_comes_before_later_ones_of_its_tenant():
    queue = FairQueue()
    first = sequence(0, "a")
    queue.push(first)
    queue.enter(first, 1)
    queue.push(sequence(1, "a"))
    queue.push_back(first)
    assert order(queue) == [0, 1]
    assert isinstance(queue, Queue)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.sampled_from(["enter", "skip", "remove"]))))
def test_all_have_a_turn_and_tenants_without_sequences_are_forgotten(asked):
    queue = FairQueue()
    pushed = [sequence(i, policy, priority) for i, (policy, priority, _) in enumerate(asked)]
    for one in pushed:
        queue.push(one)
    seen, left = [], []
    for one in queue.turns(anything, room):
        seen.append(one.arrival)
        fate = asked[one.arrival][2]
        if fate == "enter":
            queue.enter(one, 3)
            queue.charge(one, 2)
            queue.leave(one)
        else:
            left.append(one)
    assert sorted(seen) == list(range(len(asked)))
    assert len(queue) == len(left)
    for one in left:
        queue.remove(one)
    assert len(queue) == 0
    assert order(queue) == []
    assert queue._tenants == {}


def test_in_a_crowd_only_newcomers_have_turns():
    queue = FairQueue()
    running = sequence(0, "flood")
    queue.push(running)
    queue.enter(running, 10)
    for arrival, policy in ((1, "flood"), (2, "flood"), (3, "quiet"), (4, "quiet")):
        queue.push(sequence(arrival, policy))
    crowd: list[int] = []
    for one in queue.turns(anything, lambda: True):
        assert queue.newcomer(one)
        queue.enter(one, 1)
        crowd.append(one.arrival)
    assert crowd == [3]
    assert (queue.kept(64), queue.kept(15)) == (4, 0)


def test_who_got_least_has_its_prompt_computed_first():
    queue = FairQueue()
    running = [sequence(0, "flood"), sequence(1, "flood"), sequence(2, "quiet"), sequence(3, "flood", priority=1)]
    for one in running:
        queue.push(one)
        queue.enter(one, 1 if one.arrival == 2 else 5)
    assert [one.arrival for one in queue.order(running)] == [3, 2, 0, 1]
