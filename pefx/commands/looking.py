"""Commands of `pefx catalog` that look: each a dataclass of its arguments that runs itself and returns a status."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg

from pefx.commands.shown import CatalogPath, Name, Reference, Switch, progress
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.difference import difference
from pefx.store.encoding import to_plain
from pefx.store.listing import (
    as_json,
    audit_text,
    diff_tables,
    list_table,
    log_table,
    plain_audit,
    show_tables,
    stats_table,
)
from pefx.store.views import about, population, stats

FAULTS = 3  # the exit status of an audit that found some


@dataclass(frozen=True)
class Ls:
    """List policies, each with its latest revision, a page at a time."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    prefix: str = ""
    """Only policies whose name starts with this."""
    tag: str | None = None
    """Only policies with this tag."""
    owner: str | None = None
    """Only policies of this owner."""
    behind: str | None = None
    """Only policies behind this name: the last one of the page before."""
    limit: int = 100
    """Policies of a page, up to 10000."""
    json: Switch = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        rows = population(catalog, self.prefix, self.tag, self.owner, self.behind, self.limit)
        if self.json:
            print(as_json([row.plain() for row in rows]))
        else:
            print(list_table(rows, catalog.location, more=len(rows) == self.limit))
        return 0


@dataclass(frozen=True)
class Show:
    """Print all about a policy and one of its revisions: records, session, scores."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Reference
    """`policy` for its latest revision, `policy@number` or `policy@alias`."""
    json: Switch = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        found = about(Catalog.open(self.path, read_only=True), self.policy)
        print(as_json(found) if self.json else show_tables(found))
        return 0


@dataclass(frozen=True)
class Log:
    """Print the history of a policy."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Name
    """Whose history."""
    json: Switch = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        policy, revisions = catalog.policy(self.policy), catalog.log(self.policy)
        print(as_json([to_plain(r) for r in revisions]) if self.json else log_table(policy, revisions))
        return 0


@dataclass(frozen=True)
class Diff:
    """Print what changed from one revision to another: fields, and how far the weights of each site moved."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    before: Annotated[str, arg(metavar="BEFORE"), tyro.conf.Positional]
    """A revision, as `policy@number`."""
    after: Annotated[str, arg(metavar="AFTER"), tyro.conf.Positional]
    """Another one of the same base, of this policy or of another."""
    json: Switch = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        found = difference(Catalog.open(self.path, read_only=True), self.before, self.after)
        print(as_json(to_plain(found)) if self.json else diff_tables(found))
        return 0


@dataclass(frozen=True)
class Audit:
    """Read every record, hash all weights again, follow every reference. Exit status 3 where there are faults."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    json: Switch = False
    """Print JSON instead of lines."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        total = len(catalog.space.keys("revision/", "revision0"))
        with progress("audit", "revisions", total) as step:
            found = audit(catalog, step)
        print(as_json(plain_audit(found)) if self.json else audit_text(found, catalog.location))
        return FAULTS if found.faults else 0


@dataclass(frozen=True)
class Stats:
    """Print figures of a whole catalog."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    json: Switch = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        with progress("stats", "records", None) as step:
            found = stats(catalog, step)
        print(as_json(found.plain()) if self.json else stats_table(found, catalog.location))
        return 0
