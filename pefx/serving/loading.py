"""The weights that waiting sequences need, asked for ahead of their turns. Plain Python."""

from collections.abc import Iterable
from itertools import islice
from threading import Event
from typing import Any, Protocol, runtime_checkable

from pefx.errors import PefxError
from pefx.serving.scheduler import Scheduler
from pefx.store.tickets import Ticket
from pefx.store.tiers import Tier, TierCounts

AHEAD = 64  # adapters that are held in host memory for those that wait


@runtime_checkable
class Source(Protocol):
    """Where weights of revisions come from: `pefx.store.tiers.Tiers`, or a bank that training fills
    (`pefx.serving.live`).
    """

    def state(self, revision: Any) -> Tier: ...

    def prefetch(self, revision: Any) -> None: ...

    def request(self, revision: Any) -> Ticket[Any]: ...

    def wait_for_room(self) -> None: ...

    def counts(self) -> TierCounts: ...

    def close(self) -> None: ...


class Loading:
    """Tickets of the revisions that `scheduler` will want in a slot soon."""

    def __init__(self, source: Source, scheduler: Scheduler):
        self._source, self._scheduler = source, scheduler
        self._tickets: dict[str, Ticket[Any]] = {}
        self._arrived = Event()

    def ask_ahead(self) -> None:
        """Ask for what waits and is in no slot, as much as may be."""
        self._arrived.clear()
        for key, wanting in islice(self._scheduler.wanted.items(), 2 * AHEAD):
            if len(self._tickets) >= AHEAD:
                break
            if key in self._tickets or self._scheduler.resident(wanting.revision):
                continue
            try:
                self._ask(wanting.revision)
            except PefxError as error:
                if not error.retryable:
                    raise
                break

    def _ask(self, revision: Any) -> Ticket[Any]:
        ticket = self._tickets[revision.key] = self._source.request(revision)
        ticket.when_done(self._arrived.set)
        return ticket

    def ready(self, revision: Any) -> bool:
        """Whether its weights, or the reason why there are none, can be had at once."""
        ticket = self._tickets.get(revision.key)
        return ticket is not None and ticket.done()

    def take(self, revision: Any) -> Any:
        """Its weights, waited for if need be. Raises PefxError if there are none."""
        ticket = self._tickets.get(revision.key)
        while ticket is None:
            try:
                ticket = self._ask(revision)
            except PefxError as error:
                if not error.retryable:
                    raise
                self._source.wait_for_room()  # others fill the queue
        return ticket.result()

    def let_go(self, revisions: Iterable[Any] = ()) -> None:
        """Of these (who still waits for one asks anew), and of what nobody waits for."""
        over = {revision.key for revision in revisions}
        for key in [key for key in self._tickets if key in over or key not in self._scheduler.wanted]:
            self._tickets.pop(key).release()

    def wait(self, seconds: float) -> None:
        """Return when any more weights have arrived, or after that time."""
        self._arrived.wait(seconds)
