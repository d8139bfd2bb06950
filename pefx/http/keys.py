"""Who may ask: keys in a JSON file, of which only hashes are kept, each with what it may see and how much it may use.

A server reads the file again when it changes; one that cannot be read leaves what was there before.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pefx.errors import PefxError
from pefx.http.log import tell

PREFIX = "pefx-"
LOOK = 1.0  # seconds between looks at the file
Limit = Annotated[int, Meta(ge=1)]


class Key(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`policies` are names, or beginnings of names that end in `*`; policies of `owners` are seen too.

    `memories`, patterns like these, are the policies as which its requests may keep memories; it sees them too. `base`:
    may ask the bare base. `admin`: may change what is served. `priority` is the most that a request may claim. Limits
    are None where there are none.
    """

    id: str
    name: str
    hash: str
    created: str
    policies: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    base: bool = True
    admin: bool = False
    priority: int = 0
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent: Limit | None = None

    def names(self, policy: str) -> bool:
        """Whether `policy` is among its names; it may be seen through its owner all the same."""
        return _among(self.patterns, policy)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the names that it sees."""
        return tuple(dict.fromkeys(self.policies + self.memories))

    def keeps(self, policy: str) -> bool:
        """Whether its requests may keep memories as revisions of `policy`."""
        return _among(self.memories, policy)


def _among(patterns: tuple[str, ...], policy: str) -> bool:
    return any(policy.startswith(one[:-1]) if one.endswith("*") else policy == one for one in patterns)


class KeyFile(Struct, forbid_unknown_fields=True):
    keys: list[Key] = []


# Where there is no key file: whoever reaches the server, on its own machine.
EVERYONE = Key(id="-", name="-", hash="", created="", policies=("*",), memories=("*",), admin=True, priority=100)


def hashed(plain: str) -> str:
    """What is kept of a key. It has 256 random bits, so there is nothing to guess and no need of a slow hash."""
    return hashlib.sha256(plain.encode(errors="replace")).hexdigest()


def read_keys(path: Path) -> KeyFile:
    """The file at `path`. PefxError where it is not one."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=KeyFile)
    except OSError as error:
        raise PefxError(f"{path}: the keys cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PefxError(f"{path}: not a file of keys: {error}") from None
    for what in ("id", "hash"):
        seen = [getattr(key, what) for key in found.keys]
        if len(set(seen)) < len(seen):
            raise PefxError(f"{path}: two keys have the same {what}")
    return found


@contextmanager
def changing(path: Path) -> Iterator[KeyFile]:
    """The keys at `path` (none where there is no file), written back at the end. Others wait meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(path) if path.exists() else KeyFile([])
            yield keys
            fresh = path.with_name(path.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
    except OSError as error:
        raise PefxError(f"{path}: the keys cannot be written: {error.strerror}") from None


def new_key(make: Callable[[str, str], Key]) -> tuple[Key, str]:
    """A key from `make(id, hash)`, and its plain text, which is nowhere else."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return make(secrets.token_hex(4), hashed(plain)), plain


class Keys:
    """The keys of a server. `path` None: everybody has `EVERYONE`. PefxError where the file cannot be read at first."""

    def __init__(self, path: Path | None):
        self._path = path
        self._by_hash: dict[str, Key] = {}
        self._stamp: object = None
        self._looked = -LOOK
        if path is not None:
            self._read(path)

    @property
    def open(self) -> bool:
        return self._path is None

    def find(self, plain: str | None) -> Key:
        """The key that was presented. PefxError kind "no_key"."""
        if self._path is None:
            return EVERYONE
        if time.monotonic() - self._looked > LOOK:
            self._look(self._path)
        if not plain:
            raise PefxError("a key is needed: send the header 'Authorization: Bearer pefx-...'", "no_key")
        # The hash of what is presented is looked up: how long that takes says nothing about the keys.
        digest = hashed(plain)
        key = self._by_hash.get(digest)
        if key is None or not hmac.compare_digest(key.hash, digest):
            raise PefxError("this key is not known here; it may have been revoked", "no_key")
        return key

    def _look(self, path: Path) -> None:
        self._looked = time.monotonic()
        try:
            if _stamp(path) != self._stamp:
                self._read(path)
                tell("keys read", keys=len(self._by_hash))
        except (PefxError, OSError) as error:
            tell("the keys stay as they were", logging.ERROR, why=str(error))

    def _read(self, path: Path) -> None:
        try:
            self._stamp = _stamp(path)  # also of a broken one: it is told once
        except OSError as error:
            raise PefxError(f"{path}: the keys cannot be read: {error.strerror}") from None
        self._by_hash = {key.hash: key for key in read_keys(path).keys}
        self._looked = time.monotonic()


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
