"""What is shown of a catalog, as plain data: the same for tables, JSON and pages."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.compaction import disk_bytes
from pefx.store.encoding import to_plain
from pefx.store.lookup import checked, checked_at, expired, find_policy, find_revision
from pefx.store.names import after, parse_reference, policy_key, revision_key
from pefx.store.records import LATEST, Policy, Revision
from pefx.store.scores import scores
from pefx.store.sessions import find_session

KINDS = ("policy", "session", "revision", "blob", "stage", "score")


@dataclass(frozen=True)
class Row:
    """A policy and the revision that its `latest` names (None: it has none yet, or it was collected)."""

    policy: Policy
    latest: Revision | None

    def plain(self) -> dict[str, Any]:
        latest = None if self.latest is None else to_plain(self.latest)
        return {"policy": to_plain(self.policy), "latest": latest}


def population(
    catalog: Catalog,
    prefix: str = "",
    tag: str | None = None,
    owner: str | None = None,
    behind: str | None = None,
    limit: int = 100,
) -> list[Row]:
    """A page of policies; see `Catalog.search`."""
    policies = catalog.search(prefix, tag, owner, behind, limit)
    named = [policy for policy in policies if LATEST in policy.aliases]
    keys = [revision_key(policy.name, policy.aliases[LATEST]) for policy in named]
    latest = {
        policy.name: checked(catalog.space, Revision, entry.value, f"{policy.name}@{policy.aliases[LATEST]}")
        for policy, entry in zip(named, catalog.space.read_many(keys), strict=True)
        if entry.value is not None
    }
    return [Row(policy, latest.get(policy.name)) for policy in policies]


@dataclass
class Stats:
    """Counts of records by kind; policies by state, base, owner and rank; bytes of weights and of files."""

    records: dict[str, int] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    bases: Counter[str] = field(default_factory=Counter)
    owners: int = 0
    ranks: Counter[int] = field(default_factory=Counter)
    revision_bytes: int = 0
    disk_bytes: int | None = None

    def plain(self) -> dict[str, Any]:
        return to_plain(self)


def stats(catalog: Catalog, step: Callable[[int], None] = lambda keys: None) -> Stats:
    """Figures of the whole catalog; reads every policy and revision record. `step` hears of records read."""
    space, found = catalog.space, Stats()
    owners: set[str] = set()
    for kind in KINDS:
        count = 0
        for page in space.pages(f"{kind}/", after(f"{kind}/")):
            count += len(page)
            entries = space.read_many(page) if kind in ("policy", "revision") else []
            for key, entry in zip(page, entries):
                if entry.value is None:
                    continue
                if kind == "policy":
                    policy = checked(space, Policy, entry.value, key.removeprefix("policy/"))
                    found.states["expired" if policy.state == "active" and expired(policy) else policy.state] += 1
                    found.bases[policy.base] += 1
                    found.ranks[policy.spec.rank] += 1
                    owners |= {policy.owner} if policy.owner else set()
                else:
                    found.revision_bytes += checked_at(space, Revision, entry.value, key).blob_bytes
            step(len(page))
        found.records[kind] = count
    found.owners = len(owners)
    if space.local is not None:
        found.disk_bytes = disk_bytes(space.local)
    return found


@dataclass(frozen=True)
class Node:
    """A revision in a lineage: its key, step, the revision it came from, the aliases that name it, its stage."""

    key: str
    step: int
    parent: str | None
    aliases: tuple[str, ...]
    stage: str
    created: str


@dataclass(frozen=True)
class Lineage:
    """Revisions that come from each other, oldest first, of `policy`, of those it was branched from, and of branches.

    `cut`: there are more policies in it than were asked for.
    """

    policy: str
    nodes: tuple[Node, ...]
    cut: bool


def lineage(catalog: Catalog, policy: str, policies: int = 50) -> Lineage:
    """The family of `policy`: from the policy that all come from down to every branch, at most so many policies.

    Where there are more, those that `policy` comes from are in it, and what is near to it.
    """
    names = _ancestors(catalog, policy)
    root, seen = names[-1], set(names)
    below = {parent: [child] for child, parent in pairwise(names)}
    cut = False
    for name in names:  # which grows meanwhile
        prefix = f"child/{name}@"
        keys = catalog.space.page(prefix, after(prefix), policies + 1)
        found = [key.rsplit("@", 1)[1] for key in keys]
        new = [branch for branch in found if branch not in seen]
        taken = new[: max(policies - len(names), 0)]
        names += taken
        seen.update(taken)
        cut = cut or taken != new
        below[name] = [*(branch for branch in found if branch in seen), *below.get(name, [])]
    order = [root]
    for name in order:
        order += [branch for branch in dict.fromkeys(below[name]) if branch not in order]
    nodes = [node for name in order for node in _nodes(catalog, find_policy(catalog.space, name))]
    return Lineage(policy, tuple(nodes), cut)


def _ancestors(catalog: Catalog, policy: str) -> list[str]:
    """`policy`, what it was branched from, what that was branched from, and so on, as far as it is there."""
    names: list[str] = []
    record = find_policy(catalog.space, policy)
    while True:
        names.append(record.name)
        parent = "" if record.origin is None else record.origin.split("@")[0]
        if not parent or parent in names or catalog.space.read(policy_key(parent)).value is None:
            return names
        record = find_policy(catalog.space, parent)


def _nodes(catalog: Catalog, policy: Policy) -> list[Node]:
    named: dict[int, list[str]] = {}
    for alias, number in sorted(policy.aliases.items()):
        named.setdefault(number, []).append(alias)
    found, before = [], policy.origin
    for revision in catalog.log(policy.name):
        # What was trained from a fresh adapter again still follows what was there before it.
        parent = revision.parent or before
        aliases = tuple(named.get(revision.number, ()))
        stage = catalog.stage(revision).state
        found.append(Node(revision.key, revision.step, parent, aliases, stage, revision.created))
        before = revision.key
    return found


def about(catalog: Catalog, reference: str) -> dict[str, Any]:
    """Everything about `policy`, `policy@number` or `policy@alias`: policy, revision, stage, session, scores.

    No revision where `policy` has none yet, or where its latest was collected.
    """
    name, which = parse_reference(reference)
    policy = catalog.policy(name)
    found: dict[str, Any] = {"policy": to_plain(policy), "revision": None, "stage": None}
    revision = _latest(catalog, policy) if which is None else catalog.get(name, which)
    if revision is not None:
        found["revision"] = to_plain(revision)
        found["stage"] = catalog.stage(revision).state
    session = find_session(catalog, policy)
    found["session"] = None if session is None else to_plain(session)
    number = None if found["revision"] is None else found["revision"]["number"]
    found["scores"] = [] if number is None else [to_plain(score) for score in scores(catalog, name, number)]
    return found


def _latest(catalog: Catalog, policy: Policy) -> Revision | None:
    try:
        return find_revision(catalog.space, policy, None)
    except PefxError as error:
        if error.kind != "unknown_revision":
            raise
        return None


@dataclass(frozen=True)
class Curve:
    """One number over the revisions of a policy: what was measured, by whom, and (revision number, value)."""

    name: str
    source: str
    points: tuple[tuple[int, float], ...]


def curves(catalog: Catalog, policy: str) -> list[Curve]:
    """Evaluations of a policy's revisions: what training measured, and every scorer's metrics."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for revision in catalog.log(policy):
        for name, value in flat_numbers(revision.metrics).items():
            found.setdefault((name, "training"), []).append((revision.number, value))
    for score in scores(catalog, policy):
        for name, value in score.metrics.items():
            source = f"{score.scorer}, {score.renderer}, {score.path}"
            found.setdefault((name, source), []).append((score.number, value))
    return [Curve(name, source, tuple(points)) for (name, source), points in sorted(found.items())]


def flat_numbers(value: Any, prefix: str = "") -> dict[str, float]:
    """The numbers in nested dicts, by dotted path; without those that no float holds."""
    if isinstance(value, dict):
        inner = [flat_numbers(item, f"{prefix}{name}.") for name, item in value.items()]
        return {name: number for found in inner for name, number in found.items()}
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return {}
    return {prefix[:-1]: float(value)}
