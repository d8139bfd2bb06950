"""Loads from the store as scheduled work: identical misses share one, distinct ones run side by side, few may wait.

A key is either in the host cache, or its load runs on a worker or waits for one, or it is absent. Requests are answered
with a ticket at once. What nobody waits for (`prefetch`, background requests) begins when no request needs the worker,
and gives up its place in the queue to one.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any, Generic, TypeVar

from pefx.errors import PefxError
from pefx.store.host_cache import HostCache
from pefx.store.lanes import Lanes
from pefx.store.tickets import Ticket

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass
class LoadCounts:
    """What became of requests and loads so far; times in seconds.

    Every request is one of `hits` (in the cache), `shared` (its load was under way), `misses` (began one) or `refused`.
    Every load that a miss or a prefetch began is one of `loads` (`bytes_loaded` in all), `failures`, `dropped` (given
    up before a worker took it) or still under way. `prefetched` hints began a load; `prefetch_hits` of them were
    requested before they left. `waits` counts results that had to be waited for, `wait_seconds` in all. `evictions`,
    `bytes` and `pinned_bytes` are the cache's.
    """

    hits: int = 0
    shared: int = 0
    misses: int = 0
    refused: int = 0
    loads: int = 0
    failures: int = 0
    dropped: int = 0
    bytes_loaded: int = 0
    prefetched: int = 0
    prefetch_hits: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    evictions: int = 0
    bytes: int = 0
    pinned_bytes: int = 0


@dataclass(eq=False)
class _Flight(Generic[V]):
    """One load on its way, and all who share it."""

    tickets: list[Ticket[V]] = field(default_factory=list)
    wanted: bool = False  # by a hint, which no ticket's end takes back


class Loads(Generic[K, V]):
    """`load(key)` on up to `workers` threads, kept in `cache`; `queue` more distinct loads may wait. Safe for threads.

    `executor` runs the loads, by default threads of its own; it must not run one inside `submit`.
    """

    def __init__(
        self,
        load: Callable[[K], V],
        cache: HostCache[K, V],
        workers: int,
        queue: int,
        executor: Executor | None = None,
    ):
        if workers < 1:
            raise ValueError(f"loads need at least one worker, not {workers}")
        self._load, self._cache, self._workers = load, cache, workers
        self._executor = executor or ThreadPoolExecutor(workers, thread_name_prefix="pefx-load")
        self._changed = Condition()  # its lock guards all that follows, and the cache
        self._flights: dict[K, _Flight[V]] = {}
        self._lanes: Lanes[K] = Lanes(queue)
        self._running = 0
        self._fresh: dict[K, int] = {}  # bytes of what hints brought, or will, and no request took up yet
        self._fresh_bytes = 0
        self._handed: dict[K, Ticket[V]] = {}
        self._counts = LoadCounts()
        self._closed = False

    def request(self, key: K, background: bool = False) -> Ticket[V]:
        """A ticket for the value of `key`, never waiting. Release it (it is a context manager): until then it pins.

        A `background` request lets others pass, and fails as "busy" if one needs its place in the queue. Raises
        PefxError of kind "busy" (retryable; nothing is begun) where no further load may wait, or "closed".
        """
        ticket: Ticket[V] = Ticket(key, self)
        with self._changed:
            if self._closed:
                raise _closed(key)
            flight, value = self._flights.get(key), None
            if flight is not None:
                self._counts.shared += 1
                if not background and key in self._lanes:
                    self._lanes.promote(key)
                flight.tickets.append(ticket)
                self._take_up(key)
                return ticket
            value = self._cache.pin(key)
            if value is None:
                pushed = self._begin(key, _Flight([ticket]), background)
                self._counts.misses += 1
            else:
                pushed = []
                ticket.hold = "pinned"
                self._take_up(key)
                if key in self._handed:
                    handed = self._handed.pop(key)
                    handed.hold = "over"
                    handed.let_go()
                    self._cache.unpin(key)
        if value is not None:
            ticket.outcome.set_result(value)
        _fail(pushed, _busy(key))
        return ticket

    def prefetch(self, key: K, size: int = 0) -> None:
        """A hint that `key`, of about `size` bytes, will be requested. Never raises, never waits; may do nothing.

        It is passed over where its load would have to wait without room, or where what is pinned and what earlier hints
        brought fill the cache: a hint must not evict what another brought for a request that comes first.
        """
        with self._changed:
            if self._closed or key in self._flights:
                return
            if key in self._cache:
                self._cache.touch(key)
                return
            if self._cache.pinned_bytes + self._fresh_bytes + size > self._cache.limit_bytes or not self._room(True):
                return
            self._begin(key, _Flight(wanted=True), True)
            self._counts.prefetched += 1
            self._fresh[key] = size
            self._fresh_bytes += size

    def wait_for_room(self) -> None:
        """Return when a request would not be refused as "busy", or the loads are closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room(False))

    def close(self) -> None:
        """End: who waits for a load gets PefxError of kind "closed". What is held stays until it is released."""
        with self._changed:
            self._closed = True
            tickets = [ticket for flight in self._flights.values() for ticket in flight.tickets]
            for ticket in tickets:
                ticket.hold = "loose"
            for key in [key for key in self._flights if key in self._lanes]:
                self._lanes.remove(key)
                self._counts.dropped += 1
            self._flights.clear()
            self._changed.notify_all()
        for ticket in tickets:
            ticket.outcome.set_exception(_closed(ticket.key))
        self._executor.shutdown(wait=False)

    def counts(self) -> LoadCounts:
        """A copy of the counters."""
        with self._changed:
            cache = self._cache
            return replace(
                self._counts,
                hits=cache.hits,
                evictions=cache.evictions,
                bytes=cache.bytes,
                pinned_bytes=cache.pinned_bytes,
            )

    def cached(self, key: K) -> bool:
        """Whether the value of `key` is in host memory now."""
        with self._changed:
            return key in self._cache

    def give_back(self, ticket: Ticket[V]) -> bool:
        """`Ticket.release`: whether it still waited, and its outcome is now to be that it was given up."""
        with self._changed:
            before, ticket.hold = ticket.hold, "over"
            if before in ("pinned", "handed"):
                self._cache.unpin(ticket.key)
                if before == "handed":
                    del self._handed[ticket.key]
            if before != "waiting":
                return False
            key = ticket.key
            flight = self._flights[key]
            flight.tickets.remove(ticket)
            if key in self._lanes and not flight.tickets and not flight.wanted:
                self._lanes.remove(key)
                self._give_up(key)
                self._changed.notify_all()
            return True

    def hand_on(self, ticket: Ticket[V]) -> None:
        """`Ticket.hand_over`. A ticket that holds no pin has none to hand over."""
        key = ticket.key
        with self._changed:
            if ticket.hold == "pinned" and key in self._handed:
                self._cache.unpin(key)
                ticket.hold = "over"
            elif ticket.hold == "pinned":
                self._handed[key] = ticket
                ticket.hold = "handed"

    def waited(self, seconds: float) -> None:
        """A ticket's result was waited for."""
        with self._changed:
            self._counts.waits += 1
            self._counts.wait_seconds += seconds

    def _room(self, background: bool) -> bool:
        return self._running < self._workers or self._lanes.room(background)

    def _begin(self, key: K, flight: _Flight[V], background: bool) -> list[Ticket[V]]:
        """Run the load or let it wait. Returns tickets of one that gave way. PefxError kind "busy" without room."""
        if not self._room(background):
            self._counts.refused += 1
            raise _busy(key)
        self._flights[key] = flight
        if self._running < self._workers:
            self._start(key, flight)
            return []
        pushed = self._lanes.add(key, background)
        if pushed is None:
            return []
        tickets = self._give_up(pushed).tickets
        for ticket in tickets:
            ticket.hold = "loose"
        return tickets

    def _give_up(self, key: K) -> _Flight[V]:
        """A load that waited will not run."""
        self._counts.dropped += 1
        self._unmark(key)
        return self._flights.pop(key)

    def _start(self, key: K, flight: _Flight[V]) -> None:
        self._running += 1
        self._executor.submit(self._run, key, flight)

    def _run(self, key: K, flight: _Flight[V]) -> None:
        """A worker's part."""
        try:
            value = self._load(key)
            size = self._cache.check(key, value)
        except BaseException as error:  # noqa: BLE001 (every ticket raises it: whoever waits must hear of any end)
            for ticket in self._land(key, flight, lambda: None):
                ticket.outcome.set_exception(error)
            return
        for ticket in self._land(key, flight, lambda: self._cache.put(key, value, len(flight.tickets)), size):
            ticket.outcome.set_result(value)

    def _land(
        self, key: K, flight: _Flight[V], keep: Callable[[], list[K] | None], size: int | None = None
    ) -> list[Ticket[V]]:
        """A load is over, with `size` bytes or without a value; the next may run. Returns the tickets to settle."""
        with self._changed:
            if size is None:
                self._counts.failures += 1
            else:
                self._counts.loads += 1
                self._counts.bytes_loaded += size
            tickets: list[Ticket[V]] = []
            if self._flights.get(key) is flight:  # else the loads were closed meanwhile
                del self._flights[key]
                evicted, tickets = keep(), flight.tickets
                for ticket in tickets:
                    ticket.hold = "loose" if evicted is None else "pinned"
                for gone in [key] if evicted is None else evicted:
                    self._unmark(gone)
            self._running -= 1
            while len(self._lanes) and self._running < self._workers:
                following = self._lanes.pop()
                self._start(following, self._flights[following])
            self._changed.notify_all()
            return tickets

    def _take_up(self, key: K) -> None:
        """A request wants what a hint brought, if one did."""
        if key in self._fresh:
            self._counts.prefetch_hits += 1
            self._unmark(key)

    def _unmark(self, key: K) -> None:
        self._fresh_bytes -= self._fresh.pop(key, 0)


def _busy(key: Any) -> PefxError:
    return PefxError(f"{key}: too many loads wait for a worker already; ask again in a moment", "busy")


def _closed(key: Any) -> PefxError:
    return PefxError(f"{key} is not loaded any more: the loads were closed", "closed")


def _fail(tickets: list[Ticket[Any]], error: PefxError) -> None:
    for ticket in tickets:
        ticket.outcome.set_exception(error)
