"""One ordered, transactional key space on TensorStore's OCDBT driver, with its failures told in our words."""

import bisect
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import tensorstore as ts

from pefx.errors import PefxError
from pefx.store.sole_writer import MAINTENANCE, QUEUE, UNFINISHED, sole_writer

# Fixed at creation. Small nodes make small reads and commits cheap (8 MB, the default, does not); records lie in them,
# compressed beside their like, blobs do not.
CONFIG = {
    "max_decoded_node_bytes": 65536,
    "max_inline_value_bytes": 2048,
    "compression": {"id": "zstd", "level": 1},
}
CACHE_BYTES = 64 << 20
ABSENT = b"\2"  # the generation of a key without a value
ATTEMPTS = 3  # of what a compaction gets in the way of
PAGE = 1000  # keys between two places where a listing may stop
RANGES = 64  # ranges whose such places are remembered
MARKER_KEY = "catalog"
MARKER = b'{"format":"pefx-catalog","schema":1}'
COMPACTING = "compacting"
OWN_FILES = {"manifest.ocdbt", UNFINISHED, QUEUE, MAINTENANCE, COMPACTING, "d"}


@dataclass(frozen=True)
class Entry:
    """What is under a key: `value` (None: nothing) and the `generation` a later write can be conditioned on."""

    value: bytes | None
    generation: bytes


@dataclass(frozen=True)
class Write:
    """A value for a key (None: no value); with `if_generation` only if it has not changed since that was read."""

    key: str
    value: bytes | None
    if_generation: bytes | None = None


@dataclass(frozen=True)
class Commit:
    """A transaction on its way."""

    done: Any
    location: str

    def result(self) -> None:
        """Wait for it. PefxError, nothing written, where it failed; kind "conflict" where a condition did not hold."""
        try:
            self.done.result()
        except (ValueError, NotImplementedError) as error:
            raise _told(error, self.location, writing=True) from error


class Keyspace:
    """Ordered keys with atomic multi-key writes. Safe for several threads and several processes at once."""

    def __init__(self, store: Any, context: ts.Context, location: str, read_only: bool, local: str | None):
        self._store, self._context = store, context
        self.local = local  # the directory, where the key space is one
        self.location = location
        self.read_only = read_only
        self._cuts: dict[str, tuple[str, list[str]]] = {}  # by a range's end: its start, keys a listing may stop at

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> "Keyspace":
        """Open the key space at a directory or a URL (`file://`, `gs://`, `s3://`, `memory://`).

        PefxError kinds: "no_catalog" (nothing, or something else, is there), "read_only" (no permission to write and
        `read_only` not asked for), "schema" (made by another version), "damaged".
        """
        if create and read_only:
            raise PefxError("a catalog opened read-only cannot be created: drop one of the two")
        place = os.fspath(location)
        path = unquote(place.removeprefix("file://")) if place.startswith("file://") else place
        local = None if "://" in path else os.path.abspath(path)
        if local is not None and os.path.exists(local) and not os.path.isdir(local):
            raise PefxError(f"catalog '{place}' is a file, not a catalog directory", "no_catalog")
        context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        base: Any = place.rstrip("/") + "/" if local is None else {"driver": "file", "path": local + "/"}
        # An absent database opens silently as an empty one, so a marker record tells a catalog from nothing.
        space = cls(_open_store(base, {}, context, place), context, place, read_only, local)
        marker = space.read(MARKER_KEY).value
        if marker is None and create:
            _check_vacant(space, local)
            space = cls(_open_store(base, CONFIG, context, place), context, place, read_only, local)
            marker = space._create()
        if marker is None:
            raise PefxError(f"catalog '{place}' does not exist (training with a catalog makes one)", "no_catalog")
        if marker != MARKER:
            raise PefxError(
                f"catalog '{place}' was made by another version of pefx: {marker!r}, needs {MARKER!r}", "schema"
            )
        if local is not None and not read_only:
            _check_writable(local, place)
        return space

    def check_present(self) -> None:
        """PefxError kind "no_catalog" where what was opened is gone (a lost mount): it reads as empty then."""
        if self.read(MARKER_KEY).value is None:
            raise PefxError(f"catalog '{self.location}' was there and is not any more", "no_catalog")

    def twin(self, directory: str) -> "Keyspace":
        """An empty key space in a directory that nobody else knows, with the identity of this one, a directory too."""
        base, twin = ({"driver": "file", "path": f"{place}/"} for place in (self.local, directory))
        config = ts.ocdbt.dump(ts.KvStore.open(base).result()).result()["config"]
        context = ts.Context()
        return Keyspace(_open_store(twin, config, context, directory), context, directory, False, directory)

    def read(self, key: str) -> Entry:
        """The value and generation of one key, as of now."""
        return self.read_many([key])[0]

    def read_many(self, keys: Sequence[str]) -> list[Entry]:
        """Several keys, read in parallel; no common point in time."""
        found = self._read(keys)
        for _ in range(ATTEMPTS - 1):
            empty = [index for index, entry in enumerate(found) if entry.value == b""]
            if not empty:
                break
            # Where a compaction took a value's file, tensorstore 0.1.86 reads b"" (of a node's file it would say so).
            # What is really empty, as entries of indexes are, is so again.
            for index, entry in zip(empty, self._read([keys[index] for index in empty]), strict=True):
                found[index] = entry
        return found

    def _read(self, keys: Sequence[str]) -> list[Entry]:
        results = self._patiently(lambda: [future.result() for future in [self._store.read(key) for key in keys]])
        return [Entry(r.value if r.state == "value" else None, r.stamp.generation) for r in results]

    def snapshot(self) -> "Keyspace":
        """This key space as it is now, whatever is written later; read-only."""
        spec = {**self._store.spec().to_json(), "version": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        try:
            store = ts.KvStore.open(spec, context=self._context).result()
        except (ValueError, NotImplementedError) as error:
            raise _told(error, self.location, writing=False) from error
        return Keyspace(store, self._context, self.location, True, self.local)

    def keys(self, start: str, end: str) -> list[str]:
        """All keys in [start, end), in order."""
        return [key.decode() for key in self._listed(start, end)]

    def _listed(self, start: str, end: str) -> list[bytes]:
        found = self._patiently(lambda: self._store.list(ts.KvStore.KeyRange(start, end)).result())
        found.sort()
        return found

    def _patiently(self, look: Callable[[], Any]) -> Any:
        """`look`, again where a file was missing."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return look()
            except (ValueError, NotImplementedError) as error:
                if not left or not _taken(error):
                    raise _told(error, self.location, writing=False) from error
        raise AssertionError

    def page(self, start: str, end: str, limit: int) -> list[str]:
        """The first `limit` keys in [start, end), in order.

        A listing of the store has no limit. So the first time all of [start, end) is listed, and every `PAGE`th key
        remembered where there are many: later pages list from one of these to the next. What was remembered of a range
        that has grown since is forgotten.
        """
        known_from, cuts = self._cuts.get(end, (end, []))
        if start < known_from:
            found = self._listed(start, end)
            if len(found) > PAGE:
                while len(self._cuts) >= RANGES:
                    self._cuts.pop(next(iter(self._cuts)), None)
                self._cuts[end] = start, [key.decode() for key in found[PAGE::PAGE]]
            return [key.decode() for key in found[:limit]]
        page: list[str] = []
        at = bisect.bisect_right(cuts, start)
        while len(page) < limit and start < end:
            stop = cuts[at] if at < len(cuts) else end
            found = self._listed(start, stop)
            if len(found) > 4 * PAGE:
                self._cuts.pop(end, None)
            page += [key.decode() for key in found[: limit - len(page)]]
            start, at = stop, at + 1
        return page

    def pages(self, start: str, end: str, limit: int = PAGE) -> Iterator[list[str]]:
        """All keys in [start, end), in order, some at a time, as they are when their turn comes."""
        while keys := self.page(start, end, limit):
            yield keys
            start = keys[-1] + "\0"

    def transact(self, writes: Sequence[Write]) -> None:
        """All writes or none. PefxError kind "conflict" (retry) when a condition no longer holds."""
        self.begin(writes).result()

    def begin(self, writes: Sequence[Write]) -> Commit:
        """`transact`, begun: it goes on by itself, and is true when `Commit.result` returns.

        In a directory it waits for the writer before it; the next one waits for it.
        """
        if self.read_only:
            raise PefxError(f"catalog '{self.location}' is open read-only: nothing was written", "read_only")
        transaction = ts.Transaction(atomic=True)  # the default transaction is not atomic
        held = ExitStack()
        try:
            view = self._store.with_transaction(transaction)
            for write in writes:
                view.write(write.key, write.value, if_equal=write.if_generation)
            if self.local is not None:
                held.enter_context(sole_writer(self.local))
            # A transaction begins with the manifest it knows. Were that another writer's no more, all values would be
            # written twice; a compaction's no more, it would fail. A read learns of the one that took its place.
            self._store.read(MARKER_KEY).result()
            done = transaction.commit_async()
        except BaseException as error:
            transaction.abort()
            held.close()
            if isinstance(error, OSError):
                kind = "read_only" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "storage"
                told = f"catalog '{self.location}' cannot be written: {error.strerror}: '{error.filename}'"
                raise PefxError(told, kind) from error
            if isinstance(error, ValueError | NotImplementedError):
                raise _told(error, self.location, writing=True) from error
            raise
        done.add_done_callback(lambda _: held.close())
        return Commit(done, self.location)

    def _create(self) -> bytes:
        found = self.read(MARKER_KEY)
        if found.value is not None:
            return found.value
        try:
            self.transact([Write(MARKER_KEY, MARKER, found.generation)])
        except PefxError as error:
            if error.kind != "conflict":
                raise
            # another process made it at the same moment
        return self.read(MARKER_KEY).value or b""


def _open_store(base: Any, config: dict[str, Any], context: ts.Context, place: str) -> Any:
    try:
        return ts.KvStore.open({"driver": "ocdbt", "base": base, "config": config}, context=context).result()
    except (ValueError, NotImplementedError) as error:
        raise _told(error, place, writing=False) from error


def _check_vacant(space: Keyspace, local: str | None) -> None:
    """PefxError unless the place is absent, empty, or what a killed creation leaves: a catalog is never mixed in."""
    place = space.location
    other = space.keys("", "\x7f")
    if MARKER_KEY in other:
        return  # another process made the catalog since we looked
    if other:
        raise PefxError(
            f"catalog '{place}' cannot be made: another OCDBT database is there ('{other[0]}')", "no_catalog"
        )
    if local is None or not os.path.exists(local):
        return
    try:
        foreign = sorted(set(os.listdir(local)) - OWN_FILES)
    except OSError as error:
        raise PefxError(f"catalog '{place}' cannot be made: {error.strerror}", "read_only") from error
    if foreign:
        raise PefxError(
            f"catalog '{place}' cannot be made: the directory holds other things ('{foreign[0]}')", "no_catalog"
        )


def _check_writable(local: str, place: str) -> None:
    """Say at opening, not after hours of training, that nothing can be committed."""
    for folder in (local, os.path.join(local, "d")):
        if os.path.exists(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise PefxError(f"catalog '{place}' is read-only: no permission to write in '{folder}'", "read_only")


def _taken(error: Exception) -> bool:
    """Whether a data file is missing: a compaction may have taken it while we were on our way to it."""
    text = str(error)
    return text.startswith("NOT_FOUND") and "Error reading" in text


def _told(error: Exception, place: str, *, writing: bool) -> PefxError:
    """A tensorstore status (its code leads the message) as one line of ours."""
    text = " ".join(str(error).split())
    if text.startswith("ABORTED") and "Generation mismatch" in text:
        return PefxError(f"catalog '{place}': another writer committed first; read the head and try again", "conflict")
    if text.startswith("PERMISSION_DENIED") or "os_error_code='30'" in text:
        if writing:
            return PefxError(f"catalog '{place}' is read-only, nothing was written: {text}", "read_only")
        return PefxError(f"catalog '{place}' cannot be read: {text}", "no_permission")
    if text.startswith(("DATA_LOSS", "OUT_OF_RANGE")) or _taken(error) or "Error decoding" in text:
        return PefxError(f"catalog '{place}' is damaged: {text}", "damaged")
    done = "nothing was written: " if writing else ""
    return PefxError(f"catalog '{place}': {done}{text}", "storage")
