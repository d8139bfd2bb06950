"""How a committed revision comes to be served here, in two phases: its weights first, then requests. Plain Python.

Stages, and what leads from one to another, are in `pefx.store.stages`. Until `expose` a policy resolves to what it did
before; from then on to a revision whose weights are in host memory already. An exposed revision that another follows
stays exposed: requests that name its number get it, and `select` makes it the policy's own again, at once. A withdrawn
one is not served, and may be registered again.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol, runtime_checkable

from pefx.errors import PefxError
from pefx.store.records import Revision
from pefx.store.stages import StageState, next_stage
from pefx.store.tickets import Ticket


@runtime_checkable
class Source(Protocol):
    """Where weights come from: `pefx.store.tiers.Tiers`."""

    def request(self, revision: Any, background: bool = False) -> Ticket[Any]: ...


@dataclass(eq=False)
class _Known:
    """A revision on this server. `ticket`: its weights, from `prewarm` on; `warming`: what `prewarm` returned."""

    revision: Revision
    stage: StageState
    ticket: Ticket[Any] | None = None
    warming: Future[None] | None = None


class Readiness:
    """The revisions of one server and their stages. `admit` raises PefxError for one that cannot be served here.

    Safe for threads. Every method raises PefxError of kind "wrong_stage" where `pefx.store.stages` does not lead to it,
    and of kind "unknown_revision" for a revision of other content than the one registered under its key.
    """

    def __init__(self, source: Source, admit: Callable[[Revision], None]):
        self._source, self._admit = source, admit
        self._lock = RLock()
        self._known: dict[str, _Known] = {}
        self._current: dict[str, Revision] = {}  # what a policy resolves to

    def stage(self, revision: Revision) -> StageState:
        """ "committed" for a revision that this server was not told of."""
        with self._lock:
            return self._find(revision).stage

    def register(self, revision: Revision) -> None:
        """Take `revision` in: checked to fit, not served. Raises what `admit` raises; then nothing has changed."""
        with self._lock:
            known = self._find(revision)
            stage = next_stage("register", known.stage, revision.key)
            self._admit(revision)
            self._known[revision.key] = _Known(revision, stage)

    def prewarm(self, revision: Revision) -> Future[None]:
        """Load the weights of `revision`, in the background. The future ends when it is prewarmed, or with the reason.

        The weights stay in host memory until they are requested, or `revision` is withdrawn. The future raises what the
        load raised, or PefxError of kind "busy" if others needed its place in the queue or in the host cache, or
        "cancelled" if it was withdrawn meanwhile; it is registered then, or committed. Raises PefxError "busy" at once
        where the queue is full. Asked again while it goes on, the future is the same.
        """
        with self._lock:
            known = self._find(revision)
            if known.warming is not None:
                return known.warming
            next_stage("prewarm", known.stage, revision.key)
            known.ticket = ticket = self._source.request(revision, background=True)
            known.warming = done = Future()
        ticket.when_done(lambda: self._warmed(known, ticket, done))
        return done

    def _warmed(self, known: _Known, ticket: Ticket[Any], done: Future[None]) -> None:
        """The load of a prewarm is over."""
        name, error = known.revision.key, ticket.outcome.exception()
        with self._lock:
            known.warming = None
            if error is None and known.stage != "registered":
                error = PefxError(f"revision {name} was withdrawn while it was prewarmed", "cancelled")
            if error is None and not ticket.pinned:
                error = PefxError(f"revision {name}: all of the host cache is in use; prewarm it again later", "busy")
            if error is None:
                known.stage = next_stage("prewarm", known.stage, name)
        if error is None:
            done.set_result(None)
        else:
            ticket.release()
            done.set_exception(error)

    def expose(self, revision: Revision) -> None:
        """From now on the policy resolves to `revision`, whose first request finds its weights in host memory."""
        with self._lock:
            known = self._find(revision)
            known.stage = next_stage("expose", known.stage, revision.key)
            if known.ticket is not None:
                known.ticket.hand_over()
            self._current[revision.policy] = known.revision

    def select(self, revision: Revision) -> None:
        """The policy resolves to `revision` again: a rollback. Its weights may be cold."""
        with self._lock:
            known = self._find(revision)
            known.stage = next_stage("select", known.stage, revision.key)
            self._current[revision.policy] = known.revision

    def withdraw(self, revision: Revision) -> None:
        """`revision` is not served any more. Was it what its policy resolves to, the policy resolves to nothing."""
        with self._lock:
            known = self._find(revision)
            known.stage = next_stage("withdraw", known.stage, revision.key)
            ticket, known.ticket = known.ticket, None
            self._known.pop(revision.key, None)  # of millions of revisions, only those that are here are remembered
            current = self._current.get(revision.policy)
            if current is not None and current.key == revision.key:
                del self._current[revision.policy]
        if ticket is not None:
            ticket.release()

    def resolve(self, policy: str, number: int | None = None) -> Revision:
        """The revision that requests get for `policy`, or its revision `number`, if that one is exposed.

        PefxError kind "not_exposed": never another revision in its place.
        """
        with self._lock:
            if number is None:
                current = self._current.get(policy)
                if current is None:
                    raise PefxError(f"policy '{policy}' has no exposed revision on this server", "not_exposed")
                return current
            known = self._known.get(f"{policy}@{number}")
            if known is None or known.stage != "exposed":
                stage = "not registered" if known is None else known.stage
                message = f"revision {policy}@{number} is {stage} on this server, only exposed ones are served"
                raise PefxError(message, "not_exposed")
            return known.revision

    def _find(self, revision: Revision) -> _Known:
        known = self._known.get(revision.key) or _Known(revision, "committed")
        if known.revision.content_hash != revision.content_hash:
            held, given = known.revision.content_hash, revision.content_hash
            message = f"revision {revision.key} was registered with content {held}, and is now asked for as {given}"
            raise PefxError(message, "unknown_revision")
        return known
