"""A file of requests to a file of answers, each exactly once, in memory that does not grow with the answers.

So many requests are queued that those of one adapter find each other, and no more. What the journal holds already is
passed over, so a start continues where the one before was cut.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pefx.errors import PefxError
from pefx.serving.answers import refusal
from pefx.serving.engine import Answered, Engine
from pefx.serving.formats import read_requests
from pefx.serving.journal import Journal, Resolved
from pefx.serving.policies import UNAVAILABLE, Policies
from pefx.serving.progress import Counts, Reporter
from pefx.serving.requests import Request, RequestError
from pefx.serving.summary import Cost, rounded
from pefx.store.records import Revision

LOOKAHEAD = 64  # sequences that wait for each that can run: enough for those of an adapter to come together
PATIENCE = 0.05  # seconds to wait at a time where only weights are missing


class SeenIds:
    """The ids met so far, 16 bytes each however long they are."""

    def __init__(self):
        self._seen: set[bytes] = set()

    def add(self, id: str) -> bool:
        """Whether `id` is new."""
        digest = hashlib.blake2b(id.encode(), digest_size=16).digest()
        new = digest not in self._seen
        self._seen.add(digest)
        return new


class Batch:
    """One run over `requests`; `journal` is started. Bad requests get an error row, the rest are served."""

    def __init__(self, requests: Path, *, engine: Engine, policies: Policies, journal: Journal, reporter: Reporter):
        self._path, self._engine, self._policies = requests, engine, policies
        self.journal, self.reporter = journal, reporter
        self._ahead = LOOKAHEAD * engine.state().seats
        self._seen = SeenIds()
        self._begun = time.monotonic()
        self.counts = Counts()

    def run(self, stop: Callable[[int], bool] = lambda step: False) -> bool:
        """Answer every request that the journal lacks, or until `stop` says so before a step. Returns whether all are.

        Raises PefxError where the run as a whole cannot go on; what is answered by then is kept.
        """
        engine, requests, more = self._engine, read_requests(self._path), True
        while more or not engine.idle:
            if stop(self.counts.steps):
                return False
            while more and engine.waiting < self._ahead:
                found = next(requests, None)
                more = found is not None
                if found is not None:
                    self._take(*found)
            answered = engine.step()
            for one in answered:
                self._answer(one)
            self.counts.steps += 1
            self.journal.flush()
            self.reporter.update(self.counts)
            if not answered:
                engine.wait(PATIENCE)
        return True

    def summary(self) -> dict[str, Any]:
        """What the run came to, as JSON: all its starts, and of this one what only it can know."""
        tiers, state, resolved = self._engine.adapters(), self._engine.state(), self.journal.resolved
        served = {(policy, found.number) for (policy, _), found in resolved.items() if found.error is None}
        host = tiers.host
        return {
            **self.journal.totals.summary(),
            "adapters": len(served),
            "this_start": {
                "answers": self.counts.answers,
                "steps": state.steps,
                "preemptions": state.preemptions,
                "slot_hits": tiers.slot_hits,
                "slot_loads": tiers.slot_loads,
                "slot_evictions": tiers.slot_evictions,
                "host_hits": host.hits,
                "host_misses": host.shared + host.misses,
                "host_evictions": host.evictions,
                "store_reads": host.loads,
                "store_bytes": host.bytes_loaded,
                "store_wait_seconds": rounded(host.wait_seconds),
            },
        }

    def _answer(self, answered: Answered) -> None:
        counts, at = self.counts, time.monotonic() - self._begun
        cost = Cost(
            at=round(at, 6),
            prompt_tokens=answered.prompt_tokens,
            cached_tokens=answered.cached_tokens,
            tokens=answered.tokens,
            waited=round(answered.waited, 6),
            seconds=round(answered.seconds, 6),
        )
        self.journal.answer(answered.handle, answered.row, cost)
        counts.answers += 1
        counts.prompt_tokens += answered.prompt_tokens
        counts.tokens += answered.tokens

    def _take(self, number: int, where: str, found: Request | RequestError) -> None:
        """Queue the request of a line or row, or answer it with what is wrong with it."""
        if isinstance(found, RequestError):
            if found.id is not None:
                self._seen.add(found.id)
            self._refuse(number, found.id, found)
            return
        new = self._seen.add(found.id)
        if self.journal.has(number):
            return
        try:
            if not new:
                raise RequestError(f"field 'id': an earlier request has the id {found.id!r} too", "duplicate_id")
            self._engine.submit(number, found, resolve(found, self._policies, self.journal))
        except PefxError as error:
            if error.kind in UNAVAILABLE:
                raise
            self._refuse(number, found.id, PefxError(f"{where}: {error}", error.kind))

    def _refuse(self, number: int, id: str | None, error: PefxError) -> None:
        if not self.journal.has(number):
            self.journal.answer(number, refusal(id, error))
            self.counts.answers += 1


def resolve(request: Request, policies: Policies, journal: Journal) -> Revision | None:
    """The revision a request is served by, None for the bare base; the same for all of a run, whatever is committed.

    Raises PefxError for a policy that cannot be served, and (kind "storage") if the catalog lost what it had promised.
    """
    if request.policy is None:
        return None
    known = journal.resolved.get((request.policy, request.revision))
    if known is None:
        try:
            revision = policies.resolve(request.policy, request.revision)
        except PefxError as error:
            if error.kind not in UNAVAILABLE:
                journal.resolve(request.policy, request.revision, Resolved(error=error))
            raise
        journal.resolve(request.policy, request.revision, Resolved(revision.number, revision.content_hash))
        return revision
    if known.error is not None:
        raise PefxError(str(known.error), known.error.kind)
    promised = f"this run began with revision {request.policy}@{known.number}, {known.content_hash}"
    try:
        revision = policies.resolve(request.policy, known.number)
    except PefxError as error:
        raise PefxError(f"{promised}; now: {error}", "storage") from error
    if revision.content_hash != known.content_hash:
        raise PefxError(f"{promised}; the catalog now holds {revision.content_hash} under that name", "storage")
    return revision
