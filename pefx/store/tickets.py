"""A claim on one key's weights: waited for, held while they are used, given back."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pefx.errors import PefxError

V = TypeVar("V")

# waiting: for its load; pinned: its value cannot leave the cache; loose: done, nothing pinned (failed, or the cache had
# no room beside what is pinned); handed: the pin waits for the next request of the key; over: nothing is held.
Hold = Literal["waiting", "pinned", "loose", "handed", "over"]


@runtime_checkable
class Owner(Protocol):
    """What a ticket asks of the `Loads` that gave it."""

    def give_back(self, ticket: "Ticket[Any]") -> bool: ...

    def hand_on(self, ticket: "Ticket[Any]") -> None: ...

    def waited(self, seconds: float) -> None: ...


class Ticket(Generic[V]):
    """What `Loads.request` returns: as a context manager, the value, which cannot be evicted before the end of it.

        with loads.request(key) as weights:
            ...

    `hold` and `outcome` are its owner's to change. Safe for threads.
    """

    def __init__(self, key: Hashable, owner: Owner):
        self.key: Any = key
        self._owner = owner
        self.hold: Hold = "waiting"
        self.outcome: Future[V] = Future()

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self.outcome.done()

    @property
    def pinned(self) -> bool:
        """Whether the value is in the host cache and this ticket keeps it there."""
        return self.hold in ("pinned", "handed")

    def result(self, timeout: float | None = None) -> V:
        """The value; waits for it, at most `timeout` seconds.

        Raises what the load raised, TimeoutError, or PefxError of kind "cancelled" (the ticket was released), "closed"
        or, of a background request, "busy" (it gave way).
        """
        outcome = self.outcome
        if outcome.done():
            return outcome.result()
        begun = monotonic()
        try:
            return outcome.result(timeout)
        finally:
            self._owner.waited(monotonic() - begun)

    def when_done(self, call: Callable[[], None]) -> None:
        """Have `call` called once `done`: at once, or by the thread that ends the load. It must not raise."""
        self.outcome.add_done_callback(lambda _: call())

    def release(self) -> None:
        """Give the claim up: of a ticket that waits, it is cancelled. Twice is once."""
        if self._owner.give_back(self):
            self.outcome.set_exception(self._given_up())
        self.let_go()

    def hand_over(self) -> None:
        """Leave the pin to the next request of the key; until then the value stays. `release` takes it back."""
        self._owner.hand_on(self)

    def let_go(self) -> None:
        """Forget the value, so that its memory is the cache's alone: for the owner, when nothing is held any more."""
        if self.outcome.done():
            self.outcome = Future()
            self.outcome.set_exception(self._given_up())

    def _given_up(self) -> PefxError:
        return PefxError(f"the load of {self.key} was given up", "cancelled")

    def __enter__(self) -> V:
        try:
            return self.result()
        except BaseException:
            self.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
