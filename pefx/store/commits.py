"""Commits: adapters become revisions, one or many at a time, each with its weights, record and head, or not at all."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.blob import Adapter, canonical_spec, content_hash, pack
from pefx.store.encoding import encode, sealed, storable, to_plain
from pefx.store.keyspace import ABSENT, Commit, Entry, Keyspace, Write
from pefx.store.lookup import check_alive, checked, find_policy, find_revision, now
from pefx.store.names import (
    blob_key,
    check_label,
    check_name,
    child_key,
    owner_key,
    parse_reference,
    policy_key,
    revision_key,
    tag_key,
)
from pefx.store.records import LATEST, Policy, Revision

BATCH, BATCH_BYTES = 2000, 64 << 20  # of one transaction
BEYOND = 10**9  # no policy has so many revisions: numbers of keys for weights whose usual key is taken


@dataclass(frozen=True)
class Draft:
    """An adapter on its way to be a revision of `policy`; see `pefx.store.records.Revision` for the fields.

    `session`: the session that commits (0: none), which must still be the policy's newest. `owner` and `tags` are for a
    new policy; of an existing one the owner must be the same or None, and tags are added.
    """

    policy: str
    adapter: Adapter
    spec: AdapterSpec
    base: str
    step: int
    seeds: Mapping[str, int]
    config: Mapping[str, Any]
    data_fingerprint: str
    metrics: Mapping[str, Any]
    parent: str | None = None
    session: int = 0
    owner: str | None = None
    tags: tuple[str, ...] = ()


def commit_many(space: Keyspace, drafts: Iterable[Draft]) -> Generator[Revision, None, None]:
    """Commit `drafts` in order, as many in a transaction as fit; each is yielded when its transaction is committed.

    What equals its policy's head in content (weights, spec, base) gives the head and writes nothing: a commit may be
    repeated after a crash. PefxError, of the kinds of `Catalog.commit`, for the first draft that cannot be: its
    transaction writes nothing, those before it stay.
    """
    pending: _Pending | None = None
    batches = _batches(drafts)
    while True:
        batch, failed = None, None
        try:
            batch = next(batches, None)  # packed while the one before is written
        except BaseException as error:  # noqa: BLE001
            failed = error
        if pending is not None:
            yield from pending.result()
        if failed is not None:
            raise failed
        if batch is None:
            return
        pending = _begin(space, batch)


def _batches(drafts: Iterable[Draft]) -> Iterator[dict[str, tuple[Draft, bytes]]]:
    """Drafts and their bytes by policy, as many as one transaction takes; every policy in it once, no parent."""
    batch: dict[str, tuple[Draft, bytes]] = {}
    size = 0
    for draft in drafts:
        data = _packed(draft)
        parent = "" if draft.parent is None else draft.parent.partition("@")[0]
        if batch and (draft.policy in batch or parent in batch or size + len(data) > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[draft.policy] = draft, data
        size += len(data)
        if len(batch) == BATCH:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _packed(draft: Draft) -> bytes:
    check_name(draft.policy)
    where = f"policy '{draft.policy}'"
    if not isinstance(draft.base, str) or not draft.base.startswith("sha256:"):
        raise PefxError(f"{where}: base digest {draft.base!r} does not start with 'sha256:'", "wrong_base")
    return pack(draft.adapter, where, draft.spec)


@dataclass(frozen=True)
class _Pending:
    """Revisions of `batch` that are true when `commit` is (None: they were already)."""

    space: Keyspace
    batch: dict[str, tuple[Draft, bytes]]
    heads: dict[str, Entry]
    revisions: list[Revision]
    commit: Commit | None

    def result(self, aside: Mapping[str, str] = {}) -> list[Revision]:
        """Wait for it. Where only keys of blobs are taken it is done again with others; `aside` are those so far."""
        if self.commit is not None:
            try:
                self.commit.result()
            except PefxError as error:
                if error.kind != "conflict":
                    raise
                _check_undamaged(self.space, self.heads, self.revisions)
                found = _blobs_aside(self.space, self.heads, self.revisions)
                if found.keys() <= aside.keys():
                    raise
                return _begin(self.space, self.batch, self.heads, found).result(found)
        return self.revisions


def _begin(
    space: Keyspace,
    batch: dict[str, tuple[Draft, bytes]],
    heads: Mapping[str, Entry] | None = None,
    aside: Mapping[str, str] = {},
) -> _Pending:
    """Begin one transaction, on `heads` where they were read; `aside`: keys of blobs, by policy, for the usual ones."""
    entries = space.read_many([policy_key(name) for name in batch]) if heads is None else list(heads.values())
    plain: dict[int, Any] = {}  # by identity: drafts share their configs
    revisions, writes = [], []
    for entry, (draft, data) in zip(entries, batch.values(), strict=True):
        head = None if entry.value is None else checked(space, Policy, entry.value, draft.policy)
        identity = content_hash(data, draft.spec, draft.base)
        if head is not None:
            _check_lineage(head, draft)
            if head.head_hash == identity:
                revisions.append(find_revision(space, head, head.head))
                continue
        if draft.parent is not None:  # an alias names it today, its number always
            parent, which = parse_reference(draft.parent)
            draft = replace(draft, parent=find_revision(space, find_policy(space, parent), which).key)
        number = 1 if head is None else head.head + 1
        key = aside.get(draft.policy, blob_key(draft.policy, number))
        revision, record = _revision(draft, number, identity, (key, len(data)), plain)
        policy = _new(draft, revision) if head is None else _moved(head, draft, revision)
        revisions.append(revision)
        writes += [
            Write(revision.blob, data, ABSENT),
            Write(revision_key(revision.policy, revision.number), record, ABSENT),
            # the count of edits makes every head's bytes, and so its generation, new
            Write(policy_key(policy.name), encode(policy), entry.generation),
            *index_writes(head, policy),
        ]
    heads = dict(zip(batch, entries, strict=True))
    return _Pending(space, batch, heads, revisions, space.begin(writes) if writes else None)


def _revision(
    draft: Draft, number: int, identity: str, blob: tuple[str, int], plain: dict[int, Any]
) -> tuple[Revision, bytes]:
    """A checked record and its bytes: what is returned here is exactly what a reader will get back."""
    where = f"policy '{draft.policy}'"
    free = {}
    for name in ("seeds", "config", "metrics"):
        value = getattr(draft, name)
        if id(value) not in plain:
            plain[id(value)] = storable(value, f"{where}: field '{name}'")
        free[name] = plain[id(value)]
    return sealed(
        Revision(
            policy=draft.policy,
            number=number,
            content_hash=identity,
            base=draft.base,
            spec=draft.spec,
            parent=draft.parent,
            step=draft.step,
            data_fingerprint=draft.data_fingerprint,
            code_version=code_version(),
            created=now(),
            blob=blob[0],
            blob_bytes=blob[1],
            session=draft.session,
            **free,
        ),
        where,
    )


def _new(draft: Draft, revision: Revision) -> Policy:
    return Policy(
        name=draft.policy,
        base=draft.base,
        spec=draft.spec,
        head=1,
        head_hash=revision.content_hash,
        created=revision.created,
        changed=revision.created,
        owner=draft.owner,
        tags=labels(draft.tags, draft.owner),
        aliases={LATEST: 1},
    )


def _moved(head: Policy, draft: Draft, revision: Revision) -> Policy:
    return replace(
        head,
        head=revision.number,
        head_hash=revision.content_hash,
        changed=revision.created,
        state="active",
        tags=labels((*head.tags, *draft.tags), None),
        aliases={**head.aliases, LATEST: revision.number},
        edits=head.edits + 1,
    )


def labels(tags: Iterable[str], owner: str | None) -> tuple[str, ...]:
    """`tags` in order, each once. PefxError kind "bad_name" for what can be neither tag nor owner."""
    for tag in tags:
        check_label("tag", tag)
    if owner is not None:
        check_label("owner", owner)
    return tuple(sorted(set(tags)))


def index_writes(before: Policy | None, after: Policy) -> list[Write]:
    """What the indexes by owner and tag need when a policy becomes `after`; to be written with its record."""
    old, new = set() if before is None else index_keys(before), index_keys(after)
    return [Write(key, None) for key in sorted(old - new)] + [Write(key, b"") for key in sorted(new - old)]


def index_keys(policy: Policy) -> set[str]:
    """Where the indexes by owner, tag and origin name `policy`."""
    keys = {tag_key(tag, policy.name) for tag in policy.tags}
    if policy.owner is not None:
        keys.add(owner_key(policy.owner, policy.name))
    if policy.origin is not None:
        source, number = policy.origin.split("@")
        keys.add(child_key(source, int(number), policy.name))
    return keys


def _check_lineage(policy: Policy, draft: Draft) -> None:
    """PefxError unless `draft` may be the next revision of `policy`."""
    where = f"policy '{policy.name}'"
    check_alive(policy)
    check_fits(policy, draft.spec, draft.base)
    if draft.owner not in (None, policy.owner):
        raise PefxError(f"{where} belongs to {policy.owner or 'nobody'}, not to '{draft.owner}'", "wrong_owner")
    if draft.session not in (0, policy.session):
        raise PefxError(
            f"{where}: session {draft.session} was superseded by session {policy.session}; nothing was committed",
            "superseded",
        )


def check_fits(policy: Policy, spec: AdapterSpec, base: str) -> None:
    """PefxError kind "wrong_base" or "wrong_spec" unless `policy` is of this base and spec, as it is for life."""
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


def _check_undamaged(space: Keyspace, heads: Mapping[str, Entry], revisions: list[Revision]) -> None:
    """A conflict is no rival's where the head is as it was: a revision then stands above it."""
    for revision in revisions:
        name = revision.policy
        record, head = space.read_many([revision_key(name, revision.number), policy_key(name)])
        before = heads[name].value
        known = 0 if before is None else checked(space, Policy, before, name).head
        if record.value is not None and head.generation == heads[name].generation and revision.number > known:
            where = f"catalog '{space.location}': policy '{name}'"
            raise PefxError(f"{where} is damaged: revision {revision.number} exists above its head", "damaged")


def _blobs_aside(space: Keyspace, heads: Mapping[str, Entry], revisions: list[Revision]) -> dict[str, str]:
    """By policy, a free key for weights where something else lies under the usual one, as the weights of an imported
    branch do, whose source stayed behind. What lies there may be named by others: it is never written over.
    """
    found: dict[str, str] = {}
    for revision in revisions:
        name, number = revision.policy, revision.number
        usual, record, head = space.read_many([blob_key(name, number), revision_key(name, number), policy_key(name)])
        if usual.value is None or record.value is not None or head.generation != heads[name].generation:
            continue
        keys = [blob_key(name, number + beyond * BEYOND) for beyond in range(1, 9)]
        free = [key for key, entry in zip(keys, space.read_many(keys), strict=True) if entry.value is None]
        found |= {name: free[0]} if free else {}
    return found


@cache
def code_version() -> str:
    """The version of pefx that runs."""
    try:
        return version("pefx")
    except PackageNotFoundError:
        return "checkout"  # run from the sources, not installed
