"""A catalog, or a slice of it, as a tar file, and back: records and weights bit for bit.

Members are named by the keys of the catalog, those of one policy together: blobs, sessions, revisions, stages and
scores, and last the policy itself, `policy/<name>@.json`, which says that it is whole; `end.json` says so of the file.
Nothing is unpacked to disk. Both ways go on where they were cut.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.blob import canonical_spec
from pefx.store.catalog import Catalog, verified
from pefx.store.commits import index_writes, labels
from pefx.store.encoding import encode
from pefx.store.keyspace import ABSENT, Keyspace, Write
from pefx.store.lookup import checked, checked_at, expired
from pefx.store.names import after, check_alias, check_name, parse_reference, policy_key, split_key
from pefx.store.records import Policy, Revision, Score, Session, Stage
from pefx.store.sole_writer import sole_maintainer

HEAD, END = "catalog.json", "end.json"
FORMAT = "pefx-archive-1"
KINDS: dict[str, type[Any]] = {"session": Session, "revision": Revision, "stage": Stage, "score": Score}
ENDINGS = {"blob": ".safetensors"}
MEMBER = re.compile(
    r"(?P<policy>policy/[^@]+)@\.json|(?P<blob>blob/[^@]+@\d{10})\.safetensors"
    r"|(?P<record>(session|revision|stage)/[^@]+@\d{10}|score/[^@]+@\d{10}@[0-9a-f]+)\.json"
)
LONGEST = 1 << 30  # of a record or a blob; longer ones are no catalog's
TRANSACTION_BYTES = 64 << 20


@dataclass(frozen=True)
class Slice:
    """Which policies: those whose name starts with `prefix`, that have `tag`, and that belong to `owner`."""

    prefix: str = ""
    tag: str | None = None
    owner: str | None = None


@dataclass
class Imported:
    """What an import did: policies and revisions written, policies that were there already, and those refused."""

    policies: int = 0
    revisions: int = 0
    there: int = 0
    refused: list[str] = field(default_factory=list)


def export_tar(
    catalog: Catalog, target: str | Path, part: Slice = Slice(), step: Callable[[int], None] = lambda policies: None
) -> int:
    """Write the policies of `part` to the tar file `target`; returns how many are in it. It appears when it is whole.

    What was cut goes on: `target.partial` holds it meanwhile. Garbage collection and compaction wait for it. `step`
    hears of policies written. PefxError where `target` exists, where the partial file is of another slice, or where
    weights are damaged.
    """
    target = Path(target)
    if target.exists():
        raise PefxError(f"{target}: exists; an export does not overwrite")
    partial = target.with_name(target.name + ".partial")
    head = json.dumps({"format": FORMAT, "slice": vars(part)}, sort_keys=True).encode()
    try:
        with _uncollected(catalog.space), open(partial, "r+b" if partial.exists() else "w+b") as file:
            done, last, end = _whole(file, head, partial)
            file.seek(end)
            file.truncate()
            step(done)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                if end == 0:
                    _add(tar, HEAD, head)
                for policy in _chosen(catalog, part, last):
                    for name, data in _members(catalog, policy):
                        _add(tar, name, data)
                    done += 1
                    step(1)
                _add(tar, END, json.dumps({"policies": done}).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PefxError(f"{partial}: cannot be written: {error.strerror}", "storage") from error
    partial.replace(target)
    return done


@contextmanager
def _uncollected(space: Keyspace) -> Iterator[None]:
    """Garbage collection waits meanwhile, where a lock can be had: else a policy may lose what it is told to have."""
    with ExitStack() as held:
        if space.local is not None:
            with suppress(OSError):  # a place where nothing can be written
                held.enter_context(sole_maintainer(space.local))
        yield


def _whole(file: IO[bytes], head: bytes, path: Path) -> tuple[int, str | None, int]:
    """Of a partial archive: policies in it, the last one's name, and where the last one ends."""
    done, last, end = 0, None, 0
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if stop > size:
                    break
                if member.name == HEAD:
                    if _read(tar, member) != head:
                        raise PefxError(f"{path}: was begun with other choices; remove it, or ask for the same")
                    end = stop
                if member.name.startswith("policy/"):
                    done, last, end = done + 1, _key(member.name, path).removeprefix("policy/"), stop
    except tarfile.TarError:
        pass  # cut in a header, or before the first one
    return done, last, end


def _chosen(catalog: Catalog, part: Slice, behind: str | None) -> Iterator[Policy]:
    while page := catalog.search(part.prefix, part.tag, part.owner, behind, 1000):
        yield from page
        behind = page[-1].name


def _members(catalog: Catalog, policy: Policy) -> Iterator[tuple[str, bytes]]:
    """A policy as it was when its record was read; revisions that came later are left out."""
    space, name = catalog.space, policy.name
    for kind in ("session", "revision", "stage", "score"):
        start = f"{kind}/{name}@"
        for keys in space.pages(start, after(start)):
            for key, entry in zip(keys, space.read_many(keys), strict=True):
                number = split_key(key)[1]
                if entry.value is None or (kind != "session" and number > policy.head):
                    continue
                if kind == "revision":
                    revision = checked_at(space, Revision, entry.value, key)
                    yield _name(revision.blob), catalog.blob(revision)
                yield _name(key), entry.value
    yield _name(policy_key(name)), encode(policy)


def _name(key: str) -> str:
    kind = key.split("/", 1)[0]
    return key + ("" if "@" in key else "@") + ENDINGS.get(kind, ".json")


def _key(member: str, path: str | Path) -> str:
    found = MEMBER.fullmatch(member)
    if found is None:
        raise PefxError(f"{path}: holds '{member[:200]}', which is no part of a catalog", "damaged")
    return found["policy"] or found["blob"] or found["record"]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # else a list of all that was written


def check_archive(source: str | Path) -> None:
    """PefxError unless `source` begins as an archive does."""
    try:
        with tarfile.open(source, "r:") as tar:
            _check_head(tar, source)
    except tarfile.TarError as error:
        raise PefxError(f"{source}: is no tar file, or is damaged or cut ({error})", "damaged") from error
    except OSError as error:
        raise PefxError(f"{source}: cannot be read: {error.strerror}") from error


def import_tar(catalog: Catalog, source: str | Path, step: Callable[[int], None] = lambda policies: None) -> Imported:
    """Write what the tar file `source` holds; every record is checked, all weights are hashed.

    A policy that is there already as it is in the file is passed over, so that what was cut can be run again; one that
    is there otherwise, or that is not whole in the file, is refused, and the rest goes on. `step` hears of policies.
    PefxError where the file is no archive, is damaged, or is cut: what came before that is written, policy by policy.
    """
    found = Imported()
    space = catalog.space
    if space.read_only:
        raise PefxError(f"catalog '{catalog.location}' is open read-only: nothing was imported", "read_only")
    arrival = _Arrival(space, source)
    try:
        with nullcontext() if space.local is None else sole_maintainer(space.local), tarfile.open(source, "r:") as tar:
            _check_head(tar, source)
            while (member := tar.next()) is not None and member.name != END:
                tar.members.clear()  # type: ignore[attr-defined]  # else a list of all that was read
                key = _key(member.name, source)
                data = _read(tar, member)
                if key.startswith("policy/"):
                    arrival.complete(key.removeprefix("policy/"), data, found)
                    step(1)
                else:
                    arrival.take(key, data)
    except tarfile.TarError as error:
        raise PefxError(f"{source}: is no tar file, or is damaged or cut ({error})", "damaged") from error
    except OSError as error:
        raise PefxError(f"{source}: cannot be read: {error.strerror}") from error
    if member is None:
        raise PefxError(f"{source}: is cut behind its {found.policies + found.there} policies", "damaged")
    return found


def _check_head(tar: tarfile.TarFile, source: str | Path) -> None:
    first = tar.next()
    try:
        head = json.loads(_read(tar, first)) if first is not None and first.name == HEAD else {}
    except ValueError:
        head = {}
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise PefxError(f"{source}: is no archive of a catalog (its first member is not {HEAD} of format {FORMAT})")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member) if member.isreg() and member.size <= LONGEST else None
    if opened is None:
        raise PefxError(f"{tar.name}: member '{member.name[:200]}' is no file of up to {LONGEST:,} bytes", "damaged")
    data = opened.read()
    if len(data) != member.size:
        raise PefxError(f"{tar.name}: is cut within '{member.name[:200]}'", "damaged")
    return data


class _Arrival:
    """The records of one policy on their way in; what does not fit one transaction goes before the policy, unseen."""

    def __init__(self, space: Keyspace, source: str | Path):
        self._space, self._source = space, source
        self._start()

    def _start(self) -> None:
        self.records: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}
        self._bytes = 0
        self._name: str | None = None
        self._wrong: str | None = None  # why it will be refused
        self._revisions: dict[int, tuple[str, str, AdapterSpec]] = {}  # content hash, base, spec
        self._beside: set[int] = set()  # numbers of revisions that stages and scores belong to

    def take(self, key: str, data: bytes) -> None:
        """One record or blob, checked as far as it can be alone; a revision with its blob, which comes before it."""
        if key.startswith("blob/"):
            self._blobs[key] = data
            return
        name = split_key(key)[0]
        self._belongs(name, key)
        record = checked_at(self._space, KINDS[key.split("/", 1)[0]], data, key)
        if isinstance(record, Stage | Score):
            self._beside.add(record.number)
        if isinstance(record, Revision):
            if record.blob not in self._blobs:
                raise PefxError(f"{self._source}: revision {record.key} comes without its weights", "damaged")
            blob = verified(self._blobs.pop(record.blob), record, str(self._source))
            self.records[record.blob] = blob
            self._bytes += len(blob)
            self._revisions[record.number] = record.content_hash, record.base, canonical_spec(record.spec)
        self.records[key] = data
        if self._bytes >= TRANSACTION_BYTES:
            if self._space.read(policy_key(name)).value is None and (writes := self._fresh()):
                self._space.transact(writes)
            self.records, self._bytes = {}, 0

    def _belongs(self, name: str, key: str) -> None:
        """PefxError unless a record of policy `name` may come now: those of one policy lie together."""
        check_name(name)
        if self._name not in (None, name):
            raise PefxError(f"{self._source}: '{key}' lies among the records of policy '{self._name}'", "damaged")
        self._name = name

    def complete(self, name: str, data: bytes, found: Imported) -> None:
        """The policy itself: all of it is written and true, or it was there, or it is refused."""
        self._belongs(name, policy_key(name))
        policy = checked(self._space, Policy, data, name)
        _check_fields(policy, self._source)
        there = self._space.read(policy_key(name))
        if there.value is not None and checked(self._space, Policy, there.value, name) == policy:
            found.there += 1  # in whatever schema
        elif there.value is not None:
            found.refused.append(f"policy '{name}' is in catalog '{self._space.location}' already, otherwise")
        elif misfit := self._misfit(policy):
            found.refused.append(f"policy '{name}' is not whole in {self._source}: {misfit}")
        else:
            writes = self._fresh()
            if self._wrong is None:
                self._space.transact([*writes, Write(policy_key(name), data, ABSENT), *index_writes(None, policy)])
                found.policies += 1
                found.revisions += len(self._revisions)
            else:
                found.refused.append(f"policy '{name}': {self._wrong}")
        self._start()

    def _misfit(self, policy: Policy) -> str | None:
        """What a policy names that did not come with it, or that does not belong to it."""
        if policy.state != "retired" and not expired(policy):  # else its revisions may have been collected
            needed = {f"alias '{alias}'": number for alias, number in policy.aliases.items()}
            needed |= {"head": policy.head} if policy.head else {}
            for what, number in needed.items():
                if number not in self._revisions:
                    return f"its {what} is revision {number}, which is missing"
        if policy.head in self._revisions and self._revisions[policy.head][0] != policy.head_hash:
            return f"its head has content hash {self._revisions[policy.head][0]}, not {policy.head_hash}"
        for number, (_, base, spec) in self._revisions.items():
            if number > policy.head:
                return f"revision {number} is above its head"
            if (base, spec) != (policy.base, canonical_spec(policy.spec)):
                return f"revision {number} has another base or adapter spec"
        alone = self._beside - self._revisions.keys()
        return f"revision {min(alone)} has a stage or score, and is missing" if alone else None

    def _fresh(self) -> list[Write]:
        """Writes of the records that are not there; none, and `_wrong`, where a key holds something else."""
        entries = self._space.read_many(list(self.records))
        pairs = list(zip(self.records.items(), entries, strict=True))
        taken = [key for (key, data), entry in pairs if entry.value not in (None, data)]
        if taken and self._wrong is None:
            self._wrong = f"'{taken[0]}' is in catalog '{self._space.location}' already, otherwise"
        if self._wrong is not None:
            return []
        return [Write(key, data, entry.generation) for (key, data), entry in pairs if entry.value is None]


def _check_fields(policy: Policy, source: str | Path) -> None:
    """PefxError for labels that no policy is given; what was made from them would be keys of something else."""
    labels(policy.tags, policy.owner)
    for alias in policy.aliases:
        check_alias(alias)
    try:
        if policy.origin is not None and not isinstance(parse_reference(policy.origin)[1], int):
            raise ValueError(policy.origin)
        expired(policy)
    except ValueError as error:
        raise PefxError(
            f"{source}: policy '{policy.name}' has a field that no policy has ({error})", "damaged"
        ) from error
