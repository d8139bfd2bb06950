"""What each page holds, read with the functions that the commands use; the same for HTML and for JSON."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.difference import Difference, difference
from pefx.store.encoding import to_plain
from pefx.store.names import NAME_LENGTH, after, parse_reference
from pefx.store.records import Policy, Revision, Score, Session
from pefx.store.scores import scores
from pefx.store.sessions import find_session
from pefx.store.views import Curve, Lineage, Row, curves, lineage, population

LONGEST_PAGE = 500  # policies
MOST_DIFF_BYTES = 64 << 20  # of both revisions' weights
PART = re.compile(r"[A-Za-z0-9._/-]*")  # of a name
COUNT_SHARE = 100  # a count is taken again after so many times as long as it took


@dataclass(frozen=True)
class Query:
    """A search for policies, as its address says it."""

    prefix: str = ""
    tag: str | None = None
    owner: str | None = None
    behind: str | None = None
    limit: int = 100

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Query":
        """The query of an address. PefxError for what cannot be searched for."""
        said = {name: parameters.get(name, "").strip() for name in ("prefix", "tag", "owner", "behind", "limit")}
        for name in ("prefix", "behind"):
            if len(said[name]) > NAME_LENGTH or not PART.fullmatch(said[name]):
                told = f"{name} {said[name][:NAME_LENGTH]!r}: names have up to {NAME_LENGTH} of A-Z a-z 0-9 . _ - /"
                raise PefxError(told, "bad_name")
        limit = said["limit"] or "100"
        if not limit.isdecimal() or not 0 < len(limit) < 5 or not 0 < int(limit) <= LONGEST_PAGE:
            raise PefxError(f"limit {limit[:20]!r}: a page has 1 to {LONGEST_PAGE} policies")
        return cls(said["prefix"], said["tag"] or None, said["owner"] or None, said["behind"] or None, int(limit))

    def plain(self) -> dict[str, Any]:
        """What is asked, without what is usual."""
        asked = {name: value for name, value in to_plain(self).items() if value}
        return asked if self.limit != 100 else {name: value for name, value in asked.items() if name != "limit"}

    @property
    def filtered(self) -> bool:
        return bool(self.prefix or self.tag or self.owner)


@dataclass(frozen=True)
class PopulationPage:
    """Some policies, how many there are in all, and behind which name the next page begins (None: that was all)."""

    query: Query
    rows: list[Row]
    count: int
    behind: str | None

    def plain(self) -> dict[str, Any]:
        return {
            "query": self.query.plain(),
            "count": self.count,
            "behind": self.behind,
            "policies": [row.plain() for row in self.rows],
        }


class Count:
    """How many policies a catalog has. Listing a million takes a while, so it is done for a hundredth of the time."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        self._lock = Lock()
        self._until = 0.0
        self._count = 0

    def __call__(self) -> int:
        """The number, as of now or of a moment ago."""
        with self._lock:
            start = time.monotonic()
            if start >= self._until:
                self._count = len(self._catalog.space.keys("policy/", after("policy/")))
                taken = time.monotonic() - start
                self._until = start + COUNT_SHARE * taken if taken > 0.01 else 0.0
            return self._count


def population_page(catalog: Catalog, query: Query, count: Count) -> PopulationPage:
    """The policies that `query` finds, with their latest revisions."""
    rows = population(catalog, query.prefix, query.tag, query.owner, query.behind, query.limit + 1)
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return PopulationPage(query, rows, count(), rows[-1].policy.name if more else None)


@dataclass(frozen=True)
class PolicyPage:
    """A policy, its session, its revisions, oldest first, what they come from, and what was found about them."""

    policy: Policy
    session: Session | None
    history: list[Revision]
    lineage: Lineage
    curves: list[Curve]

    def plain(self) -> dict[str, Any]:
        return to_plain(self)


def policy_page(catalog: Catalog, name: str) -> PolicyPage:
    """PefxError kinds: "bad_name", "unknown_policy", "damaged"."""
    policy = catalog.policy(name)
    session = find_session(catalog, policy)
    return PolicyPage(policy, session, catalog.log(name), lineage(catalog, name), curves(catalog, name))


@dataclass(frozen=True)
class RevisionPage:
    """A revision, the aliases that name it, its stage, its scores, and how it differs from its parent.

    Where it is not compared, `not_compared` says why.
    """

    policy: Policy
    revision: Revision
    aliases: tuple[str, ...]
    stage: str
    scores: list[Score]
    difference: Difference | None
    not_compared: str | None

    def plain(self) -> dict[str, Any]:
        return to_plain(self)


def revision_page(catalog: Catalog, reference: str) -> RevisionPage:
    """Of `policy@number`, `policy@alias` or `policy` for its latest. PefxError as `policy_page`, "unknown_revision"."""
    name, which = parse_reference(reference)
    policy = catalog.policy(name)
    revision = catalog.get(name, which)
    found, reason = compared(catalog, revision)
    return RevisionPage(
        policy=policy,
        revision=revision,
        aliases=tuple(alias for alias, number in sorted(policy.aliases.items()) if number == revision.number),
        stage=catalog.stage(revision).state,
        scores=scores(catalog, name, revision.number),
        difference=found,
        not_compared=reason,
    )


def compared(catalog: Catalog, revision: Revision) -> tuple[Difference | None, str | None]:
    """How `revision` differs from its parent, or why that is not shown."""
    if revision.parent is None:
        return None, "It was trained from a fresh adapter: there is nothing to compare it with."
    try:
        parent = catalog.get(*parse_reference(revision.parent))
        size = parent.blob_bytes + revision.blob_bytes
        if size > MOST_DIFF_BYTES:
            most = MOST_DIFF_BYTES >> 20
            told = f"Their weights have {size / 2**20:,.0f} MB, and this page compares up to {most}."
            return None, f"{told} Use: pefx catalog diff {catalog.location} {parent.key} {revision.key}"
        return difference(catalog, parent.key, revision.key), None
    except PefxError as error:  # the page has more to show than this
        return None, str(error)
