"""A file of requests to a file of answers, each exactly once, in memory that does not grow with the answers.

Requests are read as places come free. What the journal holds already is passed over, so a start continues where the
one before was cut.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pefx.errors import PefxError
from pefx.serving.answers import refusal
from pefx.serving.engine import Engine
from pefx.serving.journal import Journal, Resolved
from pefx.serving.policies import UNAVAILABLE, Policies
from pefx.serving.progress import Counts, Reporter
from pefx.serving.requests import Request, RequestError, parse_line
from pefx.store.records import Revision
from pefx.store.tiers import TierCounts

LOOKAHEAD = 2  # requests that are read ahead of their turns, for each place in a step
LONGEST_WAIT = 1.0  # seconds until it is looked whether the run shall stop, while weights are waited for


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


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and content of each line that is not blank, one at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


class Batch:
    """One run over `requests`; `journal` is started. Bad requests get an error row, the rest are served."""

    def __init__(self, requests: Path, *, engine: Engine, policies: Policies, journal: Journal, reporter: Reporter):
        self._path, self._engine, self._policies = requests, engine, policies
        self.journal, self.reporter = journal, reporter
        self._ahead = LOOKAHEAD * engine.state().seats
        self._seen = SeenIds()
        self.counts = Counts()

    def run(self, stop: Callable[[int], bool] = lambda step: False) -> bool:
        """Answer every request that the journal lacks, or until `stop` says so before a step. Returns whether all are.

        Raises PefxError where the run as a whole cannot go on; what is answered by then is kept.
        """
        engine, lines, more = self._engine, read_lines(self._path), True
        while more or not engine.idle:
            if stop(self.counts.steps):
                return False
            while more and engine.waiting < self._ahead:
                number, line = next(lines, (0, b""))
                more = number > 0
                if more:
                    self._take(number, line)
            over = engine.step()
            if not over:
                engine.wait(LONGEST_WAIT)
            for answered in over:
                self.journal.answer(answered.handle, answered.row)
                self.counts.answers += 1
                self.counts.prompt_tokens += answered.prompt_tokens
                self.counts.tokens += answered.tokens
            self.counts.steps += 1
            self.journal.flush()
            self.reporter.update(self.counts)
        return True

    def adapters(self) -> TierCounts:
        """What became of the adapters that requests of this start needed."""
        return self._engine.adapters()

    def _take(self, number: int, line: bytes) -> None:
        """Queue the request on a line, or answer it with what is wrong with it."""
        where = f"{self._path.name} line {number}"
        try:
            request = parse_line(line, where)
        except RequestError as error:
            if error.id is not None:
                self._seen.add(error.id)
            self._refuse(number, error.id, error)
            return
        new = self._seen.add(request.id)
        if self.journal.has(number):
            return
        try:
            if not new:
                raise RequestError(f"field 'id': an earlier line has the id {request.id!r} too", "duplicate_id")
            self._engine.submit(number, request, resolve(request, self._policies, self.journal))
        except PefxError as error:
            if error.kind in UNAVAILABLE:
                raise
            self._refuse(number, request.id, PefxError(f"{where}: {error}", error.kind))

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
