"""Compaction: a catalog directory rewritten to hold what it holds now, and no more.

The store only ever adds files: old versions and removed values stay on disk. All keys are copied into a store beside,
whose files then take the place of the old ones: first the new data files, under names of their own, then the manifest
in one rename, which is the moment of truth; old data files go last. Readers go on; writers wait. Killed at any moment
it leaves the old store or the new one, and files that the next compaction removes.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.keyspace import COMPACTING, Keyspace, Write
from pefx.store.sole_writer import sole_maintainer, sole_writer

MANIFEST = "manifest.ocdbt"
COPIED_BYTES = 64 << 20  # of one transaction of the copy
AT_ONCE = 32  # values read at once; a blob may be large


@dataclass(frozen=True)
class Compacted:
    """Bytes on disk before and after."""

    before: int
    after: int


def compact(catalog: Catalog, step: Callable[[int], None] = lambda keys: None) -> Compacted:
    """Rewrite the catalog's directory. `step` hears of keys copied.

    PefxError where the catalog is no directory, is open read-only, or where the disk has no room for a copy.
    """
    directory = catalog.space.local
    if directory is None:
        raise PefxError(f"catalog '{catalog.location}' is no directory; export it and import it elsewhere instead")
    if catalog.space.read_only:
        raise PefxError(f"catalog '{catalog.location}' is open read-only: nothing was compacted", "read_only")
    with sole_maintainer(directory), sole_writer(directory):
        before = disk_bytes(directory)
        room = shutil.disk_usage(directory).free
        if room < before:
            raise PefxError(f"compacting '{catalog.location}' may take {before:,} bytes; the disk has {room:,} free")
        beside = os.path.join(directory, COMPACTING)
        shutil.rmtree(beside, ignore_errors=True)
        _copy(catalog.space, catalog.space.twin(beside), step)
        old = _data_files(directory)
        for file in _data_files(beside):
            os.rename(os.path.join(beside, "d", file), os.path.join(directory, "d", file))
        _synced(os.path.join(directory, "d"))
        os.replace(os.path.join(beside, MANIFEST), os.path.join(directory, MANIFEST))
        _synced(directory)
        for file in old:
            os.remove(os.path.join(directory, "d", file))
        shutil.rmtree(beside)
        return Compacted(before, disk_bytes(directory))


def disk_bytes(directory: str) -> int:
    """Bytes of all files under `directory`."""
    return sum(
        os.lstat(os.path.join(folder, file)).st_size for folder, _, files in os.walk(directory) for file in files
    )


def _copy(source: Keyspace, target: Keyspace, step: Callable[[int], None]) -> None:
    writes: list[Write] = []
    size = 0
    for page in source.pages("", "\x7f"):
        for begin in range(0, len(page), AT_ONCE):
            keys = page[begin : begin + AT_ONCE]
            for key, entry in zip(keys, source.read_many(keys), strict=True):
                if entry.value is not None:
                    writes.append(Write(key, entry.value))
                    size += len(entry.value)
            if size >= COPIED_BYTES:
                target.transact(writes)
                writes, size = [], 0
        step(len(page))
    target.transact(writes)


def _data_files(directory: str) -> list[str]:
    place = os.path.join(directory, "d")
    return os.listdir(place) if os.path.isdir(place) else []


def _synced(directory: str) -> None:
    """Make renames in `directory` survive a loss of power."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
