"""Garbage: revisions of policies that are over, and weights that no revision names. Writers go on meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.encoding import encode
from pefx.store.keyspace import ABSENT, PAGE, Entry, Keyspace, Write
from pefx.store.lookup import checked, checked_at, expired
from pefx.store.names import after, policy_key, revision_key, session_key, split_key
from pefx.store.records import Policy, Revision, Session, Stage
from pefx.store.sole_writer import sole_maintainer

BLOBS = 16  # in memory at once


@dataclass
class Collected:
    """What was removed: revisions with what hung on them, and blobs of so many bytes."""

    revisions: int = 0
    blobs: int = 0
    blob_bytes: int = 0


def collect(
    catalog: Catalog,
    keep: timedelta = timedelta(days=7),
    dry_run: bool = False,
    step: Callable[[int], None] = lambda keys: None,
) -> Collected:
    """Remove the revisions that were retired, or whose policy was retired or expired, more than `keep` ago; what waits
    for a slot on behalf of sessions that are over; then all blobs that no revision names. Policies stay, so that their
    names are not given again; an expired one is retired with its revisions, since it can come back no more.

    What nobody names in one moment can be named by nobody later: names come from commits, which bring their own bytes,
    and from branches, which need a revision that names them. So blobs are judged by a snapshot, and a blob is only
    removed as it was then. `step` hears of keys looked at. Disk space comes back with `pefx.store.compaction.compact`.
    """
    space, found = catalog.space, Collected()
    if space.read_only:
        raise PefxError(f"catalog '{catalog.location}' is open read-only: nothing was collected", "read_only")
    with nullcontext() if space.local is None else sole_maintainer(space.local):
        gone: set[str] = set()  # a dry run has to remember what would be gone
        for writes in _over(space, datetime.now(UTC) - keep, step):
            keys = {write.key for write in writes if write.value is None and write.if_generation is None}
            if dry_run:
                keys -= gone
                gone |= keys
            elif not _done(space, writes):
                continue  # a rival changed what this was decided on: it stays
            found.revisions += sum(key.startswith("revision/") for key in keys)
        _remove_unnamed(space, found, gone, dry_run, step)
    return found


def _done(space: Keyspace, writes: list[Write]) -> bool:
    """Whether all conditions held."""
    try:
        space.transact(writes)
    except PefxError as error:
        if error.kind != "conflict":
            raise
        return False
    return True


def _over(space: Keyspace, deadline: datetime, step: Callable[[int], None]) -> Iterator[list[Write]]:
    """Removals that go together: a revision whose time is over and what hangs on it; records without a policy."""
    start = policy_key("")
    for page in space.pages(start, after(start)):
        for key, entry in zip(page, space.read_many(page), strict=True):
            if entry.value is None:
                continue
            policy = checked(space, Policy, entry.value, key.removeprefix("policy/"))
            since = _over_since(policy)
            if since is not None and since <= deadline:
                yield from _all_of(space, policy, entry)
        step(len(page))
    for page in space.pages("stage/", after("stage/")):
        policies = space.read_many([policy_key(split_key(key)[0]) for key in page])
        for key, entry, owner in zip(page, space.read_many(page), policies, strict=True):
            if entry.value is None or owner.value is None:
                continue
            stage = checked_at(space, Stage, entry.value, key)
            over = stage.state == "retired" and datetime.fromisoformat(stage.changed) <= deadline
            # the head says what a commit repeats
            if over and checked(space, Policy, owner.value, stage.policy).head != stage.number:
                yield _removals(_with_records(space, stage.policy, range(stage.number, stage.number + 1)))
        step(len(page))
    yield from _ended(space, step)
    for kind in ("session", "revision", "stage", "score", "parked"):
        for page in space.pages(f"{kind}/", after(f"{kind}/")):
            owners = [policy_key(split_key(key)[0]) for key in page]
            lost: dict[str, list[str]] = {}
            for key, owner, policy in zip(page, owners, space.read_many(owners), strict=True):
                if policy.value is None:
                    lost.setdefault(owner, []).append(key)
            for owner, keys in lost.items():  # of an import that was cut: whoever needs them brings the policy along
                yield [*_removals(keys), Write(owner, None, ABSENT)]
            step(len(page))


def _ended(space: Keyspace, step: Callable[[int], None]) -> Iterator[list[Write]]:
    """Removals of what waits for a slot on behalf of sessions that are closed, or superseded: it never gets one."""
    for page in space.pages("parked/", after("parked/")):
        names = [split_key(key) for key in page]
        policies = space.read_many([policy_key(name) for name, _ in names])
        sessions = space.read_many([session_key(name, number) for name, number in names])
        for key, (name, number), policy, session in zip(page, names, policies, sessions, strict=True):
            if policy.value is None or session.value is None:
                continue
            closed = checked_at(space, Session, session.value, session_key(name, number)).state == "closed"
            if closed or checked(space, Policy, policy.value, name).session > number:
                yield [Write(key, None)]
        step(len(page))


def _all_of(space: Keyspace, policy: Policy, entry: Entry) -> Iterator[list[Write]]:
    """All revisions of a policy that is over; one that only expired is retired together with them."""
    many = PAGE if policy.state == "retired" else max(policy.head, 1)
    for begin in range(1, policy.head + 1, many):
        keys = _with_records(space, policy.name, range(begin, min(begin + many, policy.head + 1)))
        if keys and policy.state != "retired":
            ended = replace(policy, state="retired", changed=policy.expires or policy.changed, edits=policy.edits + 1)
            yield [*_removals(keys), Write(policy_key(policy.name), encode(ended), entry.generation)]
        elif keys:
            yield _removals(keys)


def _removals(keys: list[str]) -> list[Write]:
    return [Write(key, None) for key in keys]


def _over_since(policy: Policy) -> datetime | None:
    if policy.state == "retired":
        return datetime.fromisoformat(policy.changed)
    return datetime.fromisoformat(policy.expires) if policy.expires is not None and expired(policy) else None


def _with_records(space: Keyspace, name: str, numbers: range) -> list[str]:
    """The keys of these revisions and of all that hangs on them, as far as they are there."""
    first, last = numbers[0], numbers[-1]
    keys = space.keys(revision_key(name, first), revision_key(name, last) + "\0")
    for kind in ("stage", "score"):
        keys += space.keys(f"{kind}/{name}@{first:010d}", f"{kind}/{name}@{last:010d}A")
    return keys


def _remove_unnamed(
    space: Keyspace, found: Collected, gone: set[str], dry_run: bool, step: Callable[[int], None]
) -> None:
    then = space.snapshot()
    foreign: set[str] = set()  # blobs named by another revision than that of their own number: branches
    aside: set[str] = set()  # blobs whose own revision names another
    for page in then.pages("revision/", after("revision/")):
        for key, entry in zip(page, then.read_many(page), strict=True):
            if entry.value is not None and key not in gone:
                revision = checked_at(space, Revision, entry.value, key)
                if revision.blob != _own(key):
                    foreign.add(revision.blob)
                    aside.add(_own(key))
        step(len(page))
    for page in then.pages("blob/", after("blob/")):
        unnamed = [key for key in page if key not in foreign]
        names = [key.replace("blob/", "revision/", 1) for key in unnamed]
        named = then.read_many(names)
        dead = [
            key
            for key, name, entry in zip(unnamed, names, named, strict=True)
            if entry.value is None or name in gone or key in aside
        ]
        found.blobs += len(dead)
        removals = []
        for begin in range(0, len(dead), BLOBS):
            some = dead[begin : begin + BLOBS]
            for key, entry in zip(some, then.read_many(some), strict=True):
                found.blob_bytes += len(entry.value or b"")
                removals.append(Write(key, None, entry.generation))
        step(len(page))
        if removals and not dry_run:
            _remove(space, removals)


def _own(key: str) -> str:
    return key.replace("revision/", "blob/", 1)


def _remove(space: Keyspace, writes: list[Write]) -> None:
    """One transaction, or where one of the blobs was written anew meanwhile, one each."""
    try:
        space.transact(writes)
    except PefxError as error:
        if error.kind != "conflict":
            raise
        for write in writes if len(writes) > 1 else []:
            _remove(space, [write])
