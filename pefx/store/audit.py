"""Audit: every record read, every blob hashed again, every reference followed; all that is wrong, named."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pefx.errors import PefxError
from pefx.store.blob import canonical_spec, check_adapter, unpack
from pefx.store.catalog import Catalog, verified
from pefx.store.commits import index_keys
from pefx.store.keyspace import MARKER_KEY, Keyspace
from pefx.store.lookup import checked, checked_at, expired
from pefx.store.names import after, check_name, policy_key, revision_key, split_key
from pefx.store.parked import check_parked
from pefx.store.records import Policy, Revision, Score, Session, Stage

CHUNK, BYTES = 500, 64 << 20  # keys, and bytes of weights, read at once


@dataclass(frozen=True)
class Fault:
    """What is wrong with what is under `key`."""

    key: str
    what: str


@dataclass
class Audit:
    """What an audit has seen: counts of records by kind, bytes of weights, faults."""

    counts: Counter[str] = field(default_factory=Counter)
    blob_bytes: int = 0
    tensor_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    unnamed: set[str] = field(default_factory=set)  # blobs that no revision names: garbage, no fault
    shared: set[str] = field(default_factory=set)  # blobs that another revision names than that of their own number


def audit(catalog: Catalog, step: Callable[[int], None] = lambda revisions: None) -> Audit:
    """Look at everything. `step` hears how many revisions more are done. Writers may go on meanwhile.

    Nothing is raised for damage: every fault is in the result. PefxError where the store itself cannot be read.
    """
    found, space = Audit(), catalog.space
    end = ""
    for prefix, judge in sorted(_JUDGES.items()):
        foreign = [key for key in space.keys(end, prefix) if key != MARKER_KEY]
        found.faults += [Fault(key, "is no key of a catalog") for key in foreign]
        end = after(prefix)
        for keys in space.pages(prefix, end, CHUNK):
            judge(space, keys, found)
            found.counts[prefix[:-1]] += len(keys)
            step(len(keys) if prefix == "revision/" else 0)
    found.faults += [Fault(key, "is no key of a catalog") for key in space.keys(end, "\x7f")]
    found.unnamed -= found.shared
    return found


def _told(found: Audit, key: str, look: Callable[[], None]) -> None:
    try:
        look()
    except PefxError as error:
        if error.kind not in ("damaged", "schema", "bad_name", "wrong_target", "wrong_rank", "invalid_input"):
            raise
        found.faults.append(Fault(key, str(error)))
    except ValueError as error:
        found.faults.append(Fault(key, f"is no key of a catalog ({error})"))


def _policies(space: Keyspace, keys: list[str], found: Audit) -> None:
    entries = space.read_many(keys)
    for key, entry in zip(keys, entries, strict=True):
        if entry.value is not None:
            _told(found, key, lambda key=key, value=entry.value: _policy(space, key, value, found))


def _policy(space: Keyspace, key: str, value: bytes, found: Audit) -> None:
    name = key.removeprefix("policy/")
    check_name(name)
    policy = checked(space, Policy, value, name)
    wanted: dict[str, str] = {}
    if policy.state == "active" and not expired(policy):
        wanted = {revision_key(name, number): f"alias '{alias}'" for alias, number in policy.aliases.items()}
        wanted[revision_key(name, policy.head)] = "head"
    wanted |= dict.fromkeys(index_keys(policy), "an index")
    for (place, what), entry in zip(wanted.items(), space.read_many(list(wanted)), strict=True):
        if entry.value is None and not _changed(space, key, value):
            found.faults.append(Fault(key, f"{what} is '{place}', which is missing"))
        elif what == "head" and entry.value is not None:
            head = checked(space, Revision, entry.value, f"{name}@{policy.head}")
            if head.content_hash != policy.head_hash:
                told = f"its head has content hash {head.content_hash}, not {policy.head_hash}"
                found.faults.append(Fault(key, told))


def _changed(space: Keyspace, key: str, value: bytes) -> bool:
    """Whether a writer was here since: the policy is not as it was read, and what it named may be gone."""
    return space.read(key).value != value


def _revisions(space: Keyspace, keys: list[str], found: Audit) -> None:
    read: list[tuple[str, Revision]] = []
    for key, entry in zip(keys, space.read_many(keys), strict=True):
        if entry.value is not None:
            _told(
                found,
                key,
                lambda key=key, value=entry.value: read.append((key, checked_at(space, Revision, value, key))),
            )
    heads = space.read_many([policy_key(revision.policy) for _, revision in read])
    for (key, revision), head in zip(read, heads, strict=True):
        if head.value is None:
            found.faults.append(Fault(key, f"belongs to policy '{revision.policy}', which is missing"))
        elif told := _strange(space, revision, head.value):
            found.faults.append(Fault(key, told))
        if revision.blob != key.replace("revision/", "blob/", 1):
            found.shared.add(revision.blob)
    for some in _by_bytes(read):
        blobs = space.read_many([revision.blob for _, revision in some])
        for (key, revision), blob in zip(some, blobs, strict=True):
            if blob.value is not None or space.read(key).value is not None:  # else collected since
                _told(found, key, lambda r=revision, data=blob.value: _weights(space, r, data, found))


def _strange(space: Keyspace, revision: Revision, value: bytes) -> str | None:
    """Why `revision` is none of the policy that bears its name."""
    try:
        policy = checked(space, Policy, value, revision.policy)
    except PefxError:
        return None  # a fault of the policy
    if revision.number > policy.head:
        return f"stands above its policy's head, {policy.head}: nothing can be committed"
    if (revision.base, canonical_spec(revision.spec)) != (policy.base, canonical_spec(policy.spec)):
        return "has another base or adapter spec than its policy"
    return None


def _by_bytes(read: list[tuple[str, Revision]]) -> Iterator[list[tuple[str, Revision]]]:
    """Some at a time, whose weights fit into memory together."""
    some: list[tuple[str, Revision]] = []
    size = 0
    for key, revision in read:
        if some and size + revision.blob_bytes > BYTES:
            yield some
            some, size = [], 0
        some.append((key, revision))
        size += revision.blob_bytes
    if some:
        yield some


def _weights(space: Keyspace, revision: Revision, data: bytes | None, found: Audit) -> None:
    where = f"revision {revision.key}"
    data = verified(data, revision, space.location)
    adapter = unpack(data, where)
    check_adapter(adapter, revision.spec, where)
    if len(data) != revision.blob_bytes:
        found.faults.append(Fault(revision.blob, f"has {len(data)} bytes, its record says {revision.blob_bytes}"))
    found.blob_bytes += len(data)
    found.tensor_bytes += sum(x.nbytes for factors in adapter.values() for x in factors.values())


def _numbered(kind: type) -> Callable[[Keyspace, list[str], Audit], None]:
    """The judge of records that belong to a number of a policy."""

    def judge(space: Keyspace, keys: list[str], found: Audit) -> None:
        for key, entry in zip(keys, space.read_many(keys), strict=True):
            if entry.value is not None:
                _told(found, key, lambda key=key, value=entry.value: look(space, key, value))

    def look(space: Keyspace, key: str, value: bytes) -> None:
        checked_at(space, kind, value, key)
        name, number = split_key(key)
        beside = policy_key(name) if kind is Session else revision_key(name, number)
        if space.read(beside).value is None:
            raise PefxError(f"belongs to '{beside}', which is missing", "damaged")

    return judge


def _parked(space: Keyspace, keys: list[str], found: Audit) -> None:
    for key in keys:
        value = space.read(key).value
        if value is not None:
            _told(found, key, lambda key=key, value=value: _look_at_parked(key, value))


def _look_at_parked(key: str, value: bytes) -> None:
    split_key(key)
    check_parked(value, f"'{key}'")


def _indexes(space: Keyspace, keys: list[str], found: Audit) -> None:
    names = [key.rsplit("@", 1)[1] for key in keys]
    for key, name, entry in zip(keys, names, space.read_many([policy_key(name) for name in names]), strict=True):
        try:
            policy = None if entry.value is None else checked(space, Policy, entry.value, name)
        except PefxError:
            continue  # a fault of the policy
        if (policy is None or key not in index_keys(policy)) and space.read(key).value is not None:
            found.faults.append(Fault(key, f"names policy '{name}', which does not have it"))


def _blobs(space: Keyspace, keys: list[str], found: Audit) -> None:
    """Their bytes are judged with the revisions that name them."""
    named = space.read_many([key.replace("blob/", "revision/", 1) for key in keys])
    found.unnamed.update(key for key, entry in zip(keys, named, strict=True) if entry.value is None)


_JUDGES: dict[str, Callable[[Keyspace, list[str], Audit], None]] = {
    "policy/": _policies,
    "session/": _numbered(Session),
    "revision/": _revisions,
    "stage/": _numbered(Stage),
    "score/": _numbered(Score),
    "blob/": _blobs,
    "child/": _indexes,
    "owner/": _indexes,
    "parked/": _parked,
    "tag/": _indexes,
}
