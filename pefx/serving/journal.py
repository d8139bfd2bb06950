"""The record of a batch run: what is answered already, and by which revisions. Survives SIGKILL at any instant.

Files, beside one another:
`OUT.run.json`  what the run is (request file, config, base, software). Written once, whole, before anything else.
`OUT.partial`   a log of JSON lines in the order things happened: `["start"]` when a process begins,
                `["revision", policy, asked, number, content hash]` or `["refused", policy, asked, type, message]` when
                a name is first resolved, `["answer", line, [cost], {..}]` when a request is done (cost: see `Cost`).
                A name's line precedes every answer that relied on it. A torn tail is cut off.
`OUT`           the answers alone, in the order of the requests, as JSONL or Parquet. It appears, whole, when the last
                answer is in the log; then the log goes. So OUT has the same bytes however often the run was killed,
                and is never half there.
`OUT.summary.json`  what the run came to; written, whole, before OUT.
"""

import contextlib
import fcntl
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

from pefx.errors import PefxError
from pefx.serving.answers import to_json
from pefx.serving.formats import write_answers
from pefx.serving.summary import Cost, Totals

SYNC_SECONDS = 1.0
PENDING_BYTES = 1 << 20
NOWHERE = -1
FORMAT = 2

Asked = tuple[str, int | str | None]


@dataclass(frozen=True)
class Resolved:
    """What `policy` at a number or alias (None: the latest) is in this run: a revision, or an error to answer with."""

    number: int | None = None
    content_hash: str | None = None
    error: PefxError | None = None


class Journal:
    """The run of `out`. `run` is what it is (JSON); `start` before use, `finish` after the last answer.

    One that does not `write` follows the run of another process: it reads what was done before, and counts.
    """

    def __init__(self, out: Path, run: dict[str, Any], write: bool = True):
        self.out, self._write = out, write
        self.run: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **run}))  # as it will be read back
        self._header, self._partial = Path(f"{out}.run.json"), Path(f"{out}.partial")
        self._places = array("q")  # where in the log the answer to each line begins
        self._end = 0
        self._synced = 0.0
        self._file: BinaryIO | None = None
        self._pending = bytearray()
        self.totals = Totals()
        self.resolved: dict[Asked, Resolved] = {}

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the log, and of the lock on it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def answered(self) -> int:
        """Requests that are answered, by whichever start."""
        return self.totals.answers

    @property
    def complete(self) -> bool:
        return self.out.exists()

    def check(self) -> None:
        """Raise PefxError, nothing touched, if `out` cannot be written or belongs to another run."""
        if self.out.is_dir():
            raise PefxError(f"{self.out}: is a directory, expected the path of a file for the answers")
        if not self.out.parent.is_dir():
            raise PefxError(f"{self.out}: its directory {self.out.parent} does not exist")
        if not os.access(self.out.parent, os.W_OK):
            raise PefxError(f"{self.out}: its directory {self.out.parent} cannot be written")
        if not self._header.exists():
            for path in (self.out, self._partial):
                if path.exists():
                    raise PefxError(f"{path}: exists, but not from this run; move it away or name another output")
            return
        try:
            found = json.loads(self._header.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise PefxError(f"{self._header}: cannot be read as the record of a run: {error}") from None
        for name in self.run:
            before = found.get(name) if isinstance(found, dict) else None
            if before != self.run[name]:
                difference = _difference(name, before, self.run[name])
                raise PefxError(f"{self.out}: belongs to another run ({difference}); name another output")

    def start(self) -> None:
        """Begin the run, or read what an earlier start of it has done. Raises PefxError as `check`, or if it runs."""
        self.check()
        if not self._write:
            if not self.complete:
                self._read()
                self.totals.start()
            return
        if self.complete:
            self._partial.unlink(missing_ok=True)
            return
        if not self._partial.exists():
            write_whole(self._header, json.dumps(self.run, indent=1).encode())
        try:
            self._file = self._partial.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise PefxError(f"{self.out}: another process is writing it") from None
        except OSError as error:
            raise PefxError(f"{self._partial}: cannot be written: {error.strerror}") from None
        if self.complete:  # another process finished it between our look and our lock
            self._partial.unlink(missing_ok=True)
            self.close()
            return
        sync_directory(self.out.parent)
        self._read()
        self._file.truncate(self._end)
        self.totals.start()
        self._append(["start"])

    def _read(self) -> None:
        """Take in the log, up to where it is torn."""
        with self._partial.open("rb") as log:
            for line in log:
                if not self._recall(line):
                    break
                self._end += len(line)

    def _recall(self, line: bytes) -> bool:
        """Take in one line of the log; False if it is torn."""
        if not line.endswith(b"]\n"):
            return False
        try:
            kind, *rest = json.loads(line)
        except ValueError:  # after a power cut, a stretch of the log may be garbage
            return False
        if kind == "answer":
            number, cost, row = rest
            self._remember(number, row, None if cost is None else Cost(*cost))
        elif kind == "start":
            self.totals.start()
        elif kind == "revision":
            policy, asked, number, content_hash = rest
            self.resolved[policy, asked] = Resolved(number, content_hash)
        else:
            policy, asked, kind, message = rest
            self.resolved[policy, asked] = Resolved(error=PefxError(message, kind))
        return True

    def has(self, line: int) -> bool:
        """Whether the request on `line` (from 1) is answered."""
        return line < len(self._places) and self._places[line] != NOWHERE

    def _remember(self, line: int, row: dict[str, Any], cost: Cost | None) -> None:
        if self.has(line):
            raise RuntimeError(f"line {line} is answered twice")
        missing = line + 1 - len(self._places)
        self._places.extend([NOWHERE] * max(missing, 0))
        self._places[line] = self._end
        self.totals.add(row, cost)

    def answer(self, line: int, row: dict[str, Any], cost: Cost | None = None) -> None:
        """Record the answer to the request on `line`; one that was refused at once has no cost."""
        self._remember(line, row, cost)
        self._append(["answer", line, cost, row])

    def resolve(self, policy: str, number: int | str | None, resolved: Resolved) -> None:
        """Record what a name stands for, for the rest of the run."""
        self.resolved[policy, number] = resolved
        if resolved.error is None:
            self._append(["revision", policy, number, resolved.number, resolved.content_hash])
        else:
            self._append(["refused", policy, number, resolved.error.kind, str(resolved.error)])

    def _append(self, entry: list[Any]) -> None:
        if not self._write:
            return
        line = to_json(entry) + b"\n"
        self._pending += line
        self._end += len(line)
        if len(self._pending) >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is recorded to the system (a kill then loses nothing), and to the disk once a second."""
        if not self._write:
            return
        assert self._file is not None
        with self._disk_errors():
            while self._pending:
                del self._pending[: self._file.write(self._pending)]
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fdatasync(self._file.fileno())
                self._synced = time.monotonic()

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Write OUT from the log, note the revisions used beside what the run is, and drop the log.

        A `summary` is written beside it.
        """
        if not self._write:
            return
        self._synced = 0.0
        self.flush()
        used = [[p, asked, r.number, r.content_hash] for (p, asked), r in self.resolved.items() if r.error is None]
        with self._disk_errors():
            write_whole(self._header, json.dumps({**self.run, "revisions": used}, indent=1).encode())
            if summary is not None:
                write_whole(Path(f"{self.out}.summary.json"), json.dumps(summary, indent=1).encode() + b"\n")
            write_whole(self.out, lambda file: write_answers(self.out, file, self._answers()))
            self._partial.unlink()

    def _answers(self) -> Iterator[bytes]:
        with self._partial.open("rb") as log:
            for place in self._places:
                if place == NOWHERE:  # a blank line of the request file
                    continue
                log.seek(place)
                line = log.readline()
                yield line[line.index(b"{") : -len(b"]\n")]

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"{error.strerror}; what is answered is kept, start again to go on"
            raise PefxError(f"{self.out}: cannot be written: {why}") from error


def write_whole(path: Path, content: bytes | Callable[[BufferedIOBase], None]) -> None:
    """Write a file so that it is there whole, on the disk, or not at all."""
    temporary = Path(f"{path}.tmp")
    with temporary.open("wb") as file:
        file.write(content) if isinstance(content, bytes) else content(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and new files in `path` last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if before.get(key) != now[key]:
                return _difference(f"{name}.{key}", before.get(key), now[key])
    return f"its {name} was {before!r}, now {now!r}"
