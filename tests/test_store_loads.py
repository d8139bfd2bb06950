"""pefx.store.loads: shared, bounded, parallel, cancelled, closed; by hand where order matters, else with threads.

The state machine over all of the store's tiers is in test_store_tiers.py.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.store.host_cache import HostCache
from pefx.store.loads import Loads
from tests.store_fakes import SIZE, ByHand, Store, by_hand, name_in

PATIENCE = 60.0  # seconds until a test that hangs fails


def kind_of(call: Callable[[], Any]) -> str:
    with pytest.raises(PefxError) as caught:
        call()
    return caught.value.kind


def test_a_miss_then_a_hit() -> None:
    store = Store()
    loads, executor = by_hand(store)
    ticket = loads.request("a")
    assert not ticket.done()
    executor.run()
    with ticket as weights:
        assert name_in(weights) == "a"
        assert ticket.pinned
    with loads.request("a") as weights:
        assert name_in(weights) == "a"
    assert store.read == ["a"]
    counts = loads.counts()
    assert (counts.hits, counts.misses, counts.loads, counts.bytes_loaded, counts.waits) == (1, 1, 1, SIZE, 0)


def test_identical_misses_share_a_load_and_its_failure_which_is_not_kept() -> None:
    store = Store()
    store.broken.add("a")
    loads, executor = by_hand(store)
    tickets = [loads.request("a") for _ in range(3)]
    executor.run()
    assert [kind_of(ticket.result) for ticket in tickets] == ["damaged"] * 3
    assert store.read == ["a"]
    assert not loads.cached("a")
    store.broken.clear()
    ticket = loads.request("a")
    executor.run()
    assert name_in(ticket.result()) == "a"
    counts = loads.counts()
    assert (counts.misses, counts.shared, counts.failures, counts.loads) == (2, 2, 1, 1)


def test_past_the_queue_a_request_is_refused_and_nothing_of_it_stays() -> None:
    loads, executor = by_hand(Store(), workers=1, queue=2)
    tickets = [loads.request(key) for key in "abc"]
    with pytest.raises(PefxError, match=r"d: too many loads wait .* ask again in a moment") as caught:
        loads.request("d")
    assert (caught.value.kind, caught.value.retryable) == ("busy", True)
    assert loads.request("c").done() is False  # it waits already: shared, not refused
    executor.run()
    assert loads.request("d").done() is False
    while executor.jobs:
        executor.run()
    assert [name_in(ticket.result()) for ticket in tickets] == list("abc")
    assert loads.counts().refused == 1


def test_requests_run_in_order_and_before_hints() -> None:
    loads, executor = by_hand(Store(), room=9, workers=1, queue=9)
    loads.request("a")
    for key in "bcd":
        loads.prefetch(key)
    loads.request("e")
    loads.request("c")  # promoted
    order = []
    while executor.jobs:
        order += executor.under_way()
        executor.run()
    assert order == list("aecbd")
    assert (loads.counts().prefetched, loads.counts().prefetch_hits) == (3, 1)


def test_a_hint_gives_its_place_in_the_queue_to_a_request() -> None:
    loads, executor = by_hand(Store(), room=9, workers=1, queue=2)
    loads.request("a")
    loads.prefetch("b")
    background = loads.request("c", background=True)
    loads.prefetch("d")  # no room: dropped without a word
    loads.request("e")
    assert kind_of(background.result) == "busy"
    loads.request("f")
    assert kind_of(lambda: loads.request("g")) == "busy"
    assert kind_of(lambda: loads.request("h", background=True)) == "busy"
    while executor.jobs:
        executor.run()
    assert [loads.cached(key) for key in "abcdef"] == [True, False, False, False, True, True]
    assert loads.counts().dropped == 2


def test_hints_do_not_evict_what_other_hints_brought() -> None:
    loads, executor = by_hand(Store(), room=2, workers=9)
    for key in "abc":
        loads.prefetch(key, SIZE)
    assert executor.under_way() == ["a", "b"]
    executor.run()
    executor.run()
    loads.prefetch("c", SIZE)
    assert executor.under_way() == []
    with loads.request("a"):
        pass
    loads.prefetch("b", SIZE)  # here already: only used again
    loads.prefetch("c", SIZE)  # "a" was requested: it may go
    executor.run()
    assert [loads.cached(key) for key in "abc"] == [False, True, True]
    counts = loads.counts()
    assert (counts.prefetched, counts.prefetch_hits) == (3, 1)


def test_a_hint_never_raises_and_its_failure_is_left_to_the_request() -> None:
    store = Store()
    store.broken.add("a")
    loads, executor = by_hand(store)
    loads.prefetch("a")
    executor.run()
    ticket = loads.request("a")
    executor.run()
    assert kind_of(ticket.result) == "damaged"
    loads.close()
    loads.prefetch("b")
    assert executor.under_way() == []


def test_what_a_ticket_holds_is_not_evicted() -> None:
    loads, executor = by_hand(Store(), room=1, workers=9)
    first, second = loads.request("a"), loads.request("b")
    executor.run()
    executor.run()
    assert (first.pinned, second.pinned) == (True, False)
    assert name_in(second.result()) == "b"  # served, and not kept
    assert [loads.cached(key) for key in "ab"] == [True, False]
    first.release()
    first.release()
    second = loads.request("b")
    executor.run()
    assert second.pinned
    assert [loads.cached(key) for key in "ab"] == [False, True]
    assert loads.counts().evictions == 1


def test_what_never_fits_is_refused_with_the_field_to_change() -> None:
    store = Store()
    store.sizes["a"] = 100
    loads, executor = by_hand(store)
    ticket = loads.request("a")
    executor.run()
    with pytest.raises(PefxError, match=r"a has 100 bytes, the host cache holds at most 32 \(host_cache_mb\)"):
        ticket.result()


@pytest.mark.parametrize("error", [SystemExit(1), ZeroDivisionError()])
def test_whatever_breaks_nobody_is_left_waiting(error: BaseException) -> None:
    def broken(value: Any) -> Any:
        raise error

    for load, weigh in ((broken, len), (len, broken)):
        executor = ByHand()
        loads = Loads(load, HostCache(SIZE, weigh), 1, 1, executor)
        tickets = [loads.request(key) for key in "aab"]
        executor.run()
        executor.run()
        for ticket in tickets:
            with pytest.raises(type(error)):
                ticket.result()
        assert loads.counts().failures == 2


def test_cancelled_while_it_waits_a_load_is_given_up_unless_others_want_it() -> None:
    store = Store()
    loads, executor = by_hand(store, queue=4)
    loads.request("running").release()
    alone, shared, other = loads.request("a"), loads.request("b"), loads.request("b")
    loads.prefetch("c")
    hinted = loads.request("c")
    for ticket in (alone, shared, hinted):
        ticket.release()
        assert kind_of(ticket.result) == "cancelled"
    while executor.jobs:
        executor.run()
    assert store.read == ["running", "b", "c"]
    assert name_in(other.result()) == "b"
    assert loads.counts().dropped == 1
    other.release()
    assert kind_of(other.result) == "cancelled"  # what was given back is not to be used
    assert loads.counts().pinned_bytes == 0


def test_closed_nobody_waits_and_what_is_held_stays() -> None:
    store = Store()
    loads, executor = by_hand(store, workers=1)
    held = loads.request("held")
    executor.run()
    running, waiting = loads.request("a"), loads.request("b")
    loads.prefetch("c")
    loads.close()
    loads.close()
    assert [kind_of(ticket.result) for ticket in (running, waiting)] == ["closed"] * 2
    assert kind_of(lambda: loads.request("held")) == "closed"
    executor.run()  # the load that ran ends unheard
    assert executor.under_way() == []
    assert not loads.cached("a")
    assert name_in(held.result()) == "held"
    for ticket in (held, running, waiting):
        ticket.release()
    counts = loads.counts()
    assert counts.misses + counts.prefetched == counts.loads + counts.failures + counts.dropped
    loads.wait_for_room()


def test_sixteen_threads_that_miss_one_key_make_one_load() -> None:
    store, gate = Store(), threading.Event()

    def load(key: str) -> Any:
        assert gate.wait(PATIENCE)
        return store.load(key)

    loads = Loads(load, HostCache(4 * SIZE), 8, 16)
    asked = threading.Barrier(17)

    def ask() -> str:
        ticket = loads.request("a")
        asked.wait(PATIENCE)
        with ticket as weights:
            return name_in(weights)

    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(ask) for _ in range(16)]
        asked.wait(PATIENCE)
        gate.set()
        assert [answer.result(PATIENCE) for answer in answers] == ["a"] * 16
    loads.close()
    counts = loads.counts()
    assert store.read == ["a"]
    assert (counts.misses, counts.shared, counts.loads, counts.pinned_bytes) == (1, 15, 1, 0)


def test_distinct_loads_run_side_by_side_up_to_the_workers() -> None:
    together, lock = threading.Barrier(8), threading.Lock()  # passed only by eight at once
    now = most = 0

    def load(key: str) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(PATIENCE)
        with lock:
            now -= 1
        return Store().load(key)

    loads = Loads(load, HostCache(64 * SIZE), 8, 16)
    tickets = {f"user{i}": loads.request(f"user{i}") for i in range(16)}
    for key, ticket in tickets.items():
        with ticket as weights:
            assert name_in(weights) == key
    loads.close()
    assert most == 8
    assert loads.counts().loads == 16


def test_a_full_queue_refuses_while_the_worker_is_stuck() -> None:
    gate = threading.Event()
    loads = Loads(lambda key: gate.wait(PATIENCE) and Store().load(key), HostCache(64 * SIZE), 1, 1)
    held = [loads.request("a"), loads.request("b")]
    assert kind_of(lambda: loads.request("c")) == "busy"  # were it to wait, the gate would stay shut
    loads.prefetch("c")
    opener = threading.Thread(target=gate.set)
    opener.start()
    loads.wait_for_room()
    held.append(loads.request("c"))
    assert [name_in(ticket.result(PATIENCE)) for ticket in held] == list("abc")
    opener.join()
    loads.close()
    assert loads.counts().waits >= 0


def test_closing_wakes_who_waits_though_the_load_goes_on() -> None:
    gate, loading = threading.Event(), threading.Event()

    def load(key: str) -> Any:
        loading.set()
        assert gate.wait(PATIENCE)
        return Store().load(key)

    loads = Loads(load, HostCache(64 * SIZE), 1, 4)
    tickets = [loads.request(key) for key in "aab"]
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(lambda ticket=ticket: kind_of(ticket.result)) for ticket in tickets]
        assert loading.wait(PATIENCE)
        loads.close()
        assert [answer.result(PATIENCE) for answer in answers] == ["closed"] * 3
    gate.set()


def test_many_threads_keep_the_bound_and_their_own_keys() -> None:
    store = Store()
    loads = Loads(store.load, HostCache(3 * SIZE), 4, 2)
    kinds: list[str] = []

    def ask(seed: int) -> None:
        for step in range(60):
            key = f"user{(seed * 7 + step * step) % 9}"
            loads.prefetch(f"user{(seed + step) % 9}", SIZE)
            try:
                ticket = loads.request(key, background=step % 3 == 0)
                with ticket as weights:
                    assert name_in(weights) == key
                    if ticket.pinned:
                        assert loads.cached(key)
            except PefxError as error:
                kinds.append(error.kind)
            counts = loads.counts()
            assert counts.pinned_bytes <= counts.bytes <= 3 * SIZE

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(ask, seed) for seed in range(8)]:
            done.result(PATIENCE)
    loads.close()
    counts = loads.counts()
    assert counts.hits + counts.shared + counts.misses + counts.refused == 8 * 60
    assert counts.pinned_bytes == 0
    assert set(kinds) <= {"busy"}


def test_misuse_raises() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        Loads(Store().load, HostCache(1), 0, 1)
