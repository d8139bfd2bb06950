"""Directories that appear when they are complete: written beside their name, and renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pefx.errors import PefxError


@contextmanager
def complete_directory(target: Path) -> Iterator[Path]:
    """A new directory to write into, which gets the name `target` when the body ends, and is removed if it fails.

    A killed process leaves `.NAME.*.partial` beside the target. Raises PefxError of kind "conflict" if the target is
    there, "storage" if the disk refuses.
    """
    if os.path.lexists(target):
        raise PefxError(f"{target}: is there already; remove it, or give another name", "conflict")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(target)
        sync(target.parent)
    except OSError as error:
        raise PefxError(f"{target}: cannot be written ({error})", "storage") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
