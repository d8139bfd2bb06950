"""pefx.store.tickets: what a claim holds, and for how long."""

import gc
import threading
import weakref
from typing import Any

import pytest

from pefx.errors import PefxError
from tests.store_fakes import Store, by_hand, name_in


def test_a_ticket_is_told_when_it_is_done() -> None:
    loads, executor = by_hand(Store(), workers=2)
    told: list[str] = []
    ticket, given_up = loads.request("a"), loads.request("b")
    ticket.when_done(lambda: told.append("loaded"))
    given_up.when_done(lambda: told.append("released"))
    given_up.release()
    assert told == ["released"]
    executor.run()
    ticket.when_done(lambda: told.append("at once"))
    assert told == ["released", "loaded", "at once"]


def test_a_wait_is_counted_and_may_be_bounded() -> None:
    loads, executor = by_hand(Store())
    ticket = loads.request("a")
    with pytest.raises(TimeoutError):
        ticket.result(0.0)
    assert (loads.counts().waits, loads.counts().wait_seconds >= 0) == (1, True)
    executor.run()
    assert name_in(ticket.result()) == "a"
    assert loads.counts().waits == 1


def test_a_ticket_that_fails_as_a_context_is_released() -> None:
    store = Store()
    store.broken.add("a")
    loads, executor = by_hand(store)
    ticket = loads.request("a")
    executor.run()
    with pytest.raises(PefxError, match="a is damaged"), ticket:
        pass
    assert ticket.hold == "over"


def test_released_from_another_thread_a_wait_ends() -> None:
    loads, _ = by_hand(Store())
    ticket = loads.request("a")
    threading.Timer(0.0, ticket.release).start()
    with pytest.raises(PefxError, match="the load of a was given up") as caught:
        ticket.result(60.0)
    assert caught.value.kind == "cancelled"


def test_a_pin_handed_over_stays_until_the_next_request_takes_it() -> None:
    loads, executor = by_hand(Store(), room=1)
    first = loads.request("a")
    executor.run()
    first.hand_over()
    first.hand_over()
    other = loads.request("b")
    executor.run()
    assert (first.pinned, other.pinned, loads.cached("a")) == (True, False, True)
    with loads.request("a") as weights:
        assert name_in(weights) == "a"
    assert first.hold == "over"
    assert loads.counts().pinned_bytes == 0
    first.release()


def test_a_pin_handed_over_may_be_taken_back_and_two_are_one() -> None:
    loads, executor = by_hand(Store(), room=1)
    tickets = [loads.request("a") for _ in range(2)]
    executor.run()
    for ticket in tickets:
        ticket.hand_over()
    assert [ticket.hold for ticket in tickets] == ["handed", "over"]
    assert loads.counts().pinned_bytes > 0
    tickets[0].release()
    assert loads.counts().pinned_bytes == 0


class Weights(dict[str, Any]):
    """A value that can be watched."""


def test_a_ticket_that_is_over_does_not_keep_the_value() -> None:
    loads, executor = by_hand(Store(), room=1)
    loads._load = lambda key: Weights(Store().load(key))
    ticket = loads.request("a")
    executor.run()
    watched = weakref.ref(ticket.result())
    ticket.hand_over()
    loads.request("a").release()
    other = loads.request("b")  # evicts it
    executor.run()
    gc.collect()
    assert watched() is None
    other.release()
