"""The catalog: policies and their immutable revisions, each commit one atomic transaction.

Keys (policy names hold no '@', numbers have ten digits, so that key order is lineage order):
`policy/<name>` the policy with its head, `revision/<name>@<number>` a revision, `blob/<name>@<number>` its weights.
A revision's record names its blob's key, so a later revision of another policy can point at the same bytes.
"""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.blob import Adapter, canonical_spec, check_adapter, content_hash, pack, unpack
from pefx.store.keyspace import CACHE_BYTES, Keyspace, Write
from pefx.store.records import Policy, Revision, decode, encode, to_plain

NAME_LENGTH = 128
NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class Provenance(TypedDict):
    """Where a revision came from. `parent`: number of the revision it was trained from, absent for a fresh adapter."""

    step: int
    seed: int
    config: dict[str, Any]
    data_fingerprint: str
    evaluation: dict[str, Any]
    parent: NotRequired[int | None]


class Catalog:
    """Adapters as durable, versioned, attributable objects. Safe for several threads and processes at once."""

    def __init__(self, space: Keyspace):
        self._space = space
        self.location = space.location

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        create: bool = False,
        read_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> "Catalog":
        """The catalog at `path` (a directory or a URL). PefxError, nothing written, if there is none and not `create`.

        Without `read_only` a directory that cannot be written is refused here, before anything is trained for it.
        """
        return cls(Keyspace.open(path, create=create, read_only=read_only, cache_bytes=cache_bytes))

    def commit(
        self, policy: str, *, adapter: Adapter, spec: AdapterSpec, base: str, **provenance: Unpack[Provenance]
    ) -> Revision:
        """Make `adapter` the newest revision of `policy`, in one transaction: weights, record and head, or nothing.

        The same content as the head (weights, spec, base) returns the head and writes nothing, so a commit may be
        repeated after a crash. PefxError kinds: "conflict" (another writer of this policy was first: retry),
        "wrong_base", "wrong_spec" (a policy has one base and one spec), "wrong_target", "wrong_rank", "not_finite",
        "unknown_revision" (no such parent), "read_only".
        """
        check_name(policy)
        if not isinstance(base, str) or not base.startswith("sha256:"):
            raise PefxError(f"policy '{policy}': base digest {base!r} does not start with 'sha256:'", "wrong_base")
        check_adapter(adapter, spec, f"policy '{policy}'")
        data = pack(adapter, f"policy '{policy}'")
        identity = content_hash(data, spec, base)

        head_entry = self._space.read(_policy_key(policy))
        head = None if head_entry.value is None else self._policy(policy, head_entry.value)
        if head is not None:
            _check_lineage(head, spec, base)
            if head.head_hash == identity:
                return self.get(policy, head.head)
        number = 1 if head is None else head.head + 1
        revision = _revision(policy, number, identity, base, spec, len(data), provenance)
        if revision.parent is not None:
            self.get(policy, revision.parent)

        now = Policy(policy, base, spec, number, identity, revision.created if head is None else head.created)
        record, blob = self._space.read_many([_revision_key(policy, number), revision.blob])
        if record.value is not None and self._space.read(_policy_key(policy)).generation == head_entry.generation:
            where = f"catalog '{self.location}': policy '{policy}'"
            raise PefxError(f"{where} is damaged: revision {number} exists above its head", "damaged")
        self._space.transact(
            [
                Write(revision.blob, data, blob.generation),
                Write(_revision_key(policy, number), encode(revision), record.generation),
                # the number in the head makes every head's bytes, and so its generation, new
                Write(_policy_key(policy), encode(now), head_entry.generation),
            ]
        )
        return revision

    def policy(self, name: str) -> Policy:
        """The policy `name`. PefxError kind "unknown_policy"."""
        check_name(name)
        value = self._space.read(_policy_key(name)).value
        if value is None:
            raise PefxError(f"policy '{name}' is not in catalog '{self.location}'", "unknown_policy")
        return self._policy(name, value)

    def get(self, policy: str, number: int | None = None) -> Revision:
        """Revision `number` of `policy`, or its latest. PefxError kind "unknown_policy" or "unknown_revision"."""
        wanted = self.policy(policy).head if number is None else number
        check_name(policy)
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 < wanted < 10**10:
            raise PefxError(
                f"policy '{policy}': revision {wanted!r} is no revision number (1, 2, ...)", "unknown_revision"
            )
        value = self._space.read(_revision_key(policy, wanted)).value
        if value is None:
            head = self.policy(policy).head
            raise PefxError(f"policy '{policy}' has no revision {wanted}; its latest is {head}", "unknown_revision")
        return self._revision(policy, wanted, value)

    def latest(self, policy: str) -> Revision:
        """The newest revision of `policy`."""
        return self.get(policy)

    def log(self, policy: str) -> list[Revision]:
        """All revisions of `policy`, oldest first."""
        self.policy(policy)
        prefix = f"revision/{policy}@"
        keys = self._space.keys(prefix, _after(prefix))
        entries = self._space.read_many(keys)
        return [
            self._revision(policy, int(key[len(prefix) :]), entry.value)
            for key, entry in zip(keys, entries, strict=True)
            if entry.value is not None
        ]

    def policies(self, prefix: str = "") -> Iterator[str]:
        """The names of all policies that start with `prefix`, in order."""
        start = f"policy/{prefix}"
        for key in self._space.keys(start, _after(start)):
            yield key.removeprefix("policy/")

    def load(self, revision: Revision) -> dict[str, dict[str, np.ndarray]]:
        """The adapter of `revision`, bit for bit as committed; its arrays are read-only.

        PefxError kind "damaged" if the bytes are gone or are not those that were hashed at the commit.
        """
        where = f"catalog '{self.location}': revision {revision.key}"
        data = self._space.read(revision.blob).value
        if data is None:
            raise PefxError(f"{where}: its weights ('{revision.blob}') are missing", "damaged")
        found = content_hash(data, revision.spec, revision.base)
        if found != revision.content_hash:
            raise PefxError(
                f"{where} is damaged: content hash {found}, committed as {revision.content_hash}", "damaged"
            )
        adapter = unpack(data, where)
        check_adapter(adapter, revision.spec, where)
        return adapter

    def _policy(self, name: str, value: bytes) -> Policy:
        where = f"catalog '{self.location}': policy '{name}'"
        policy = decode(Policy, value, where)
        if policy.name != name:
            raise PefxError(f"{where} is damaged: its record names '{policy.name}'", "damaged")
        return policy

    def _revision(self, policy: str, number: int, value: bytes) -> Revision:
        where = f"catalog '{self.location}': revision {policy}@{number}"
        revision = decode(Revision, value, where)
        if (revision.policy, revision.number) != (policy, number):
            raise PefxError(f"{where} is damaged: its record names {revision.key}", "damaged")
        return revision


def check_name(name: str) -> None:
    """PefxError unless `name` can name a policy: 1-128 of letters, digits, '.', '_', '-', in parts joined by '/'."""
    shown = repr(name) if len(str(name)) <= NAME_LENGTH else f"{str(name)[:40]!r}... ({len(str(name))} characters)"
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or not NAME.fullmatch(name):
        rule = f"1 to {NAME_LENGTH} of A-Z a-z 0-9 . _ -, parts joined by single '/'"
        raise PefxError(f"policy name {shown} is not allowed: use {rule}", "bad_name")
    if any(set(part) == {"."} for part in name.split("/")):
        raise PefxError(f"policy name {shown} is not allowed: a part of only dots reads as a path", "bad_name")


def require_base(revision: Revision, base: str) -> None:
    """PefxError kind "wrong_base" unless `revision` was trained on the base with digest `base`."""
    if revision.base != base:
        raise PefxError(f"revision {revision.key} belongs to base {revision.base}, not to {base}", "wrong_base")


def _check_lineage(policy: Policy, spec: AdapterSpec, base: str) -> None:
    if policy.base != base:
        raise PefxError(f"policy '{policy.name}' belongs to base {policy.base}, not to {base}", "wrong_base")
    if canonical_spec(policy.spec) != canonical_spec(spec):
        was, given = to_plain(canonical_spec(policy.spec)), to_plain(canonical_spec(spec))
        differs = next(name for name in was if was[name] != given[name])
        raise PefxError(
            f"policy '{policy.name}': adapter spec field '{differs}' is {was[differs]!r}, not {given[differs]!r};"
            " a policy keeps its spec for life, use a new policy name",
            "wrong_spec",
        )


def _revision(
    policy: str, number: int, identity: str, base: str, spec: AdapterSpec, size: int, provenance: Provenance
) -> Revision:
    """A checked record: what is returned here is exactly what a reader will get back."""
    draft = Revision(
        policy=policy,
        number=number,
        content_hash=identity,
        base=base,
        spec=spec,
        code_version=_code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        blob=f"blob/{policy}@{number:010d}",
        blob_bytes=size,
        **{"parent": None, **provenance},  # type: ignore[arg-type]
    )
    return decode(Revision, encode(draft), f"policy '{policy}'")


def _code_version() -> str:
    try:
        return version("pefx")
    except PackageNotFoundError:
        return "checkout"  # run from the sources, not installed


def _policy_key(name: str) -> str:
    return f"policy/{name}"


def _revision_key(policy: str, number: int) -> str:
    return f"revision/{policy}@{number:010d}"


def _after(prefix: str) -> str:
    """The first key behind all keys that start with `prefix`; keys are ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
