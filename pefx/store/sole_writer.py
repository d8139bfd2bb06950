"""One writer at a time in a catalog directory, and no trap left by the one before that was killed.

TensorStore replaces `manifest.ocdbt` by writing `manifest.ocdbt.__lock` under a lock and renaming it. A writer killed
between the two leaves its bytes there, and the next writer (tensorstore 0.1.86) writes over them without cutting the
file: a shorter manifest then ends in the remains of the dead one, and no one can read the database again. So writers
pass one by one, and each first empties what a dead one left. Readers never wait.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

QUEUE = "writer.lock"
MAINTENANCE = "maintenance.lock"
UNFINISHED = "manifest.ocdbt.__lock"


@contextmanager
def sole_writer(directory: str) -> Iterator[None]:
    """Hold the catalog's write lock, among threads and processes; it is free again when its holder dies.

    `directory` is made if absent. OSError if it or its lock cannot be written.
    """
    with _locked(directory, QUEUE):
        _empty_unfinished(os.path.join(directory, UNFINISHED))
        yield


@contextmanager
def sole_maintainer(directory: str) -> Iterator[None]:
    """Among those who collect garbage or move files, one at a time; writers and readers go on."""
    with _locked(directory, MAINTENANCE):
        yield


@contextmanager
def _locked(directory: str, name: str) -> Iterator[None]:
    os.makedirs(directory, exist_ok=True)
    lock = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _empty_unfinished(path: str) -> None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # TensorStore's own lock on this file (this kind excludes it, flock does not): a live writer, as of an
        # interrupted but still running commit, is waited for.
        fcntl.lockf(file, fcntl.LOCK_EX)
        # If the live writer renamed the file while we waited, ours is the manifest itself.
        if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
            os.ftruncate(file, 0)
    finally:
        os.close(file)
