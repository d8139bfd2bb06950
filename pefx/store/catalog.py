"""The catalog: policies and their immutable revisions, each commit one atomic transaction.

What is here reads, and commits revisions. What else happens to policies is in `pefx.store.lifecycle`, `sessions` and
`scores`; what happens to the whole catalog in `audit`, `garbage`, `compaction` and `archive`. A revision's record names
its blob's key, so a branch can point at the bytes of another policy's revision.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.blob import Adapter, check_adapter, content_hash, unpack
from pefx.store.commits import Draft, commit_many
from pefx.store.keyspace import CACHE_BYTES, Keyspace
from pefx.store.lookup import check_alive, checked, checked_at, find_policy, find_revision, stage_in
from pefx.store.names import after, check_label, check_part, owner_key, policy_key, revision_key, stage_key, tag_key
from pefx.store.records import Policy, Revision, Stage

LONGEST_PAGE = 10_000


class Provenance(TypedDict):
    """Where a revision came from; see `pefx.store.commits.Draft`."""

    step: int
    seeds: Mapping[str, int]
    config: Mapping[str, Any]
    data_fingerprint: str
    metrics: Mapping[str, Any]
    parent: NotRequired[str | None]
    session: NotRequired[int]
    owner: NotRequired[str | None]
    tags: NotRequired[tuple[str, ...]]


class Catalog:
    """Adapters as durable, versioned, attributable objects. Safe for several threads and processes at once."""

    def __init__(self, space: Keyspace):
        self.space = space
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

    @classmethod
    def open_for_serving(cls, path: str | os.PathLike[str]) -> "Catalog":
        """For writing, so that aliases can be moved and memories kept, or where that may not be, for reading."""
        try:
            return cls.open(path)
        except PefxError as error:
            if error.kind not in ("read_only", "no_permission"):
                raise
            return cls.open(path, read_only=True)

    def commit(
        self, policy: str, *, adapter: Adapter, spec: AdapterSpec, base: str, **provenance: Unpack[Provenance]
    ) -> Revision:
        """Make `adapter` the newest revision of `policy`, in one transaction: weights, record and head, or nothing.

        The same content as the head (weights, spec, base) returns the head and writes nothing, so a commit may be
        repeated after a crash. PefxError kinds: "conflict" (another writer of this policy was first: retry),
        "wrong_base", "wrong_spec" (a policy has one base and one spec), "wrong_target", "wrong_rank", "not_finite",
        "unknown_revision" (no such parent), "superseded" (a newer session trains this policy), "wrong_owner",
        "retired", "read_only".
        """
        draft = Draft(policy=policy, adapter=adapter, spec=spec, base=base, **provenance)
        return next(commit_many(self.space, [draft]))

    def commit_many(self, drafts: Iterable[Draft]) -> Generator[Revision, None, None]:
        """`commit` for many, thousands in a transaction; see `pefx.store.commits.commit_many`. Lazy: iterate it."""
        return commit_many(self.space, drafts)

    def check_present(self) -> None:
        """PefxError kind "no_catalog" where the catalog is gone since it was opened."""
        self.space.check_present()

    def policy(self, name: str) -> Policy:
        """The policy `name`. PefxError kind "unknown_policy"."""
        return find_policy(self.space, name)

    def get(self, policy: str, which: int | str | None = None) -> Revision:
        """A revision of `policy` by number or alias, or its latest. PefxError "unknown_policy", "unknown_revision"."""
        return find_revision(self.space, find_policy(self.space, policy), which)

    def serving(self, policy: str, which: int | str | None = None) -> Revision:
        """As `get`, for use: PefxError kind "retired" where policy or revision are, or where the policy expired."""
        record = find_policy(self.space, policy)
        check_alive(record)
        revision = find_revision(self.space, record, which)
        if self.stage(revision).state == "retired":
            raise PefxError(f"revision {revision.key} is retired", "retired")
        return revision

    def stage(self, revision: Revision) -> Stage:
        """How far `revision` is on its way to being served."""
        value = self.space.read(stage_key(revision.policy, revision.number)).value
        return stage_in(self.space, value, revision)

    def log(self, policy: str) -> list[Revision]:
        """All revisions of `policy`, oldest first."""
        prefix = revision_key(self.policy(policy).name, 0)[:-10]
        keys = self.space.keys(prefix, after(prefix))
        return [
            checked_at(self.space, Revision, entry.value, key)
            for key, entry in zip(keys, self.space.read_many(keys), strict=True)
            if entry.value is not None
        ]

    def policies(self, prefix: str = "") -> Iterator[str]:
        """The names of all policies that start with `prefix`, in order."""
        check_part("prefix", prefix)
        start = policy_key(prefix)
        for page in self.space.pages(start, after(start)):
            yield from (key.removeprefix("policy/") for key in page)

    def search(
        self,
        prefix: str = "",
        tag: str | None = None,
        owner: str | None = None,
        behind: str | None = None,
        limit: int = 100,
    ) -> list[Policy]:
        """The first `limit` policies in order of name that start with `prefix` and have `tag` and `owner`.

        The next page begins `behind` the last one's last name. PefxError for a limit above `LONGEST_PAGE`.
        """
        if not 0 < limit <= LONGEST_PAGE:
            raise PefxError(f"a page has 1 to {LONGEST_PAGE} policies, not {limit}; ask for several pages")
        for what, label in (("tag", tag), ("owner", owner)):
            if label is not None:
                check_label(what, label)
        check_part("prefix", prefix)
        check_part("policy", behind or "")
        key = policy_key if tag is None and owner is None else _index(tag, owner)
        root, start, end = key(""), key(prefix), after(key(prefix))
        start = start if behind is None else max(start, key(behind) + "\0")
        found: list[Policy] = []
        for page in self.space.pages(start, end, limit):
            names = [name.removeprefix(root) for name in page]
            entries = self.space.read_many([policy_key(name) for name in names])
            read = [
                checked(self.space, Policy, entry.value, name)
                for name, entry in zip(names, entries, strict=True)
                if entry.value is not None
            ]
            found += [p for p in read if tag in (None, *p.tags) and owner in (None, p.owner)]
            if len(found) >= limit:
                break
        return found[:limit]

    def load(self, revision: Revision) -> dict[str, dict[str, np.ndarray]]:
        """The adapter of `revision`, bit for bit as committed; its arrays are read-only.

        PefxError kind "damaged" if the bytes are gone or are not those that were hashed at the commit.
        """
        where = f"catalog '{self.location}': revision {revision.key}"
        adapter = unpack(self.blob(revision), where)
        check_adapter(adapter, revision.spec, where)
        return adapter

    def blob(self, revision: Revision) -> bytes:
        """The verified bytes of `revision`'s weights. PefxError kind "damaged" as `load`."""
        return verified(self.space.read(revision.blob).value, revision, self.location)


def verified(data: bytes | None, revision: Revision, location: str) -> bytes:
    """`data`, where it is what was committed as `revision`. PefxError kind "damaged" otherwise."""
    where = f"catalog '{location}': revision {revision.key}"
    if data is None:
        raise PefxError(f"{where}: its weights ('{revision.blob}') are missing", "damaged")
    found = content_hash(data, revision.spec, revision.base)
    if found != revision.content_hash:
        raise PefxError(f"{where} is damaged: content hash {found}, committed as {revision.content_hash}", "damaged")
    return data


def require_base(revision: Revision, base: str) -> None:
    """PefxError kind "wrong_base" unless `revision` was trained on the base with digest `base`."""
    if revision.base != base:
        raise PefxError(f"revision {revision.key} belongs to base {revision.base}, not to {base}", "wrong_base")


def _index(tag: str | None, owner: str | None):
    """The keys of the index that is asked; of two, the one by tag."""
    return lambda name: owner_key(str(owner), name) if tag is None else tag_key(tag, name)
