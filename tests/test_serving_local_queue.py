"""pefx.serving.local_queue: all come out, in an order that loads each adapter as seldom as can be."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.local_queue import LocalQueue
from pefx.store.residency import Residency


@dataclass(frozen=True)
class Adapter:
    content_hash: str


@dataclass(eq=False)
class Waiting:
    name: int
    adapter: str | None
    priority: int = 0

    @property
    def revision(self) -> Adapter | None:
        return None if self.adapter is None else Adapter(self.adapter)


def resident(*names: str) -> Callable[[Adapter], bool]:
    return lambda revision: revision.content_hash in names


def order(queue: LocalQueue, *slots: str) -> list[int]:
    return [sequence.name for sequence in queue.turns(resident(*slots), lambda: False)]


def filled(*adapters: str | None) -> LocalQueue:
    queue = LocalQueue()
    for name, adapter in enumerate(adapters):
        queue.push(Waiting(name, adapter))
    return queue


def test_adapters_come_together_in_the_order_of_their_first():
    assert order(filled("a", "b", "a", "c", "b", "a")) == [0, 2, 5, 1, 4, 3]


def test_what_is_in_a_slot_comes_first_and_the_base_needs_none():
    assert order(filled("a", "b", None, "a", "b", None), "b") == [1, 4, 2, 5, 0, 3]


def test_priority_goes_before_place():
    queue = filled("a", "a")
    queue.push(Waiting(2, "b", priority=1))
    queue.push(Waiting(3, "a", priority=-1))
    assert order(queue, "a") == [2, 0, 1, 3]


def test_who_ran_comes_back_before_all_of_its_priority():
    queue = filled("a", "b")
    queue.push(Waiting(2, "c", priority=1))
    for name in (3, 4):
        queue.push_back(Waiting(name, "b"))
    assert order(queue, "a") == [2, 4, 3, 0, 1]


def test_what_is_removed_is_gone_and_not_twice():
    queue = LocalQueue()
    first, second, back = Waiting(0, "a"), Waiting(1, "a"), Waiting(2, "a")
    queue.push(first)
    queue.push(second)
    queue.push_back(back)
    for sequence in (first, back):
        queue.remove(sequence)
        with pytest.raises(KeyError):
            queue.remove(sequence)
    assert (order(queue), len(queue)) == ([1], 1)
    queue.enter(second, 3)
    assert (order(queue), len(queue)) == ([], 0)
    queue.charge(second, 1)
    queue.leave(second)


what_waits = st.lists(
    st.tuples(st.sampled_from([None, *"abcd"]), st.integers(-1, 1), st.booleans()), min_size=1, max_size=20
)


@given(what_waits, st.sets(st.sampled_from("abcd")), st.sets(st.integers(0, 19)))
def test_all_come_out_once_in_order_whatever_enters_meanwhile(
    waiting: list[tuple[str | None, int, bool]], slots: set[str], entering: set[int]
):
    queue, pushed = LocalQueue(), []
    for name, (adapter, priority, back) in enumerate(waiting):
        pushed.append(Waiting(name, adapter, priority))
        (queue.push_back if back else queue.push)(pushed[-1])
    given_: list[Waiting] = []
    for sequence in queue.turns(resident(*slots), lambda: False):
        given_.append(sequence)
        if sequence.name in entering:
            queue.enter(sequence, 1)
    assert sorted(s.name for s in given_) == list(range(len(waiting)))

    def rank(sequence: Waiting) -> tuple[int, bool, bool]:
        back = waiting[sequence.name][2]
        return -sequence.priority, not back, not back and sequence.adapter is not None and sequence.adapter not in slots

    assert [rank(s) for s in given_] == sorted(rank(s) for s in given_)
    fresh = [(s.priority, s.adapter) for s in given_ if not waiting[s.name][2]]
    runs = [key for i, key in enumerate(fresh) if i == 0 or fresh[i - 1] != key]
    assert len(runs) == len(set(runs))  # each adapter's come together
    left = [s for s in pushed if s.name not in entering]
    assert len(queue) == len(left)
    assert sorted(order(queue)) == sorted(s.name for s in left)


class Fifo:
    """First come, first served: what is measured against."""

    def __init__(self):
        self._waiting: dict[Any, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Any) -> None:
        self._waiting[sequence] = None

    def turns(self, resident: Callable[[Any], bool], crowded: Callable[[], bool]) -> Iterator[Any]:
        return iter(list(self._waiting))

    def enter(self, sequence: Any, tokens: int) -> None:
        del self._waiting[sequence]


def loads(queue: Any, asked: list[str], window: int, seats: int = 16, slots: int = 16) -> int:
    """Adapter loads of a server that answers each request in one to four steps and looks `window` requests ahead."""
    slots_of, running = Residency(slots), []
    ahead = deque(Waiting(i, adapter) for i, adapter in enumerate(asked))
    while ahead or len(queue) or running:
        while ahead and len(queue) < window:
            queue.push(ahead.popleft())
        for sequence in queue.turns(lambda revision: slots_of.slot(revision.content_hash) is not None, lambda: False):
            if len(running) >= seats:
                break
            if slots_of.acquire(sequence.adapter) is not None:
                queue.enter(sequence, 1)
                running.append([1 + sequence.name % 4, sequence])
        for seat in running:
            seat[0] -= 1
        for left, sequence in running:
            if not left:
                slots_of.release(sequence.adapter)
        running = [seat for seat in running if seat[0]]
    return slots_of.loads


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_locality_saves_loads(exponent: float):
    """4,000 requests for 200 adapters, 16 slots, even and Zipf; first come, first served against 64 x 16 ahead."""
    weights = 1 / np.arange(1, 201) ** exponent
    drawn = np.random.default_rng(0).choice(200, size=4000, p=weights / weights.sum())
    asked = [f"a{number}" for number in drawn]
    fifo, near, far = loads(Fifo(), asked, 1024), loads(LocalQueue(), asked, 32), loads(LocalQueue(), asked, 1024)
    print(
        f"loads of {len(set(asked))} adapters, exponent {exponent}: {fifo} in order, {near} with 2 x, {far} with 64 x"
    )
    assert far < fifo / 3
    assert far < near
