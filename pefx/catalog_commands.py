"""The commands of `pefx catalog`: each a dataclass of its arguments that runs itself and returns an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import arg, subcommand

from pefx.config import Precision
from pefx.errors import PefxError
from pefx.progress import Display, clock
from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.difference import difference
from pefx.store.encoding import to_plain
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, drop_alias, expire, give, retag, retire, retire_revision, rollback, set_alias
from pefx.store.listing import (
    as_json,
    audit_text,
    diff_tables,
    list_table,
    log_table,
    plain_audit,
    show_tables,
    size,
    stats_table,
)
from pefx.store.names import parse_reference
from pefx.store.views import about, population, stats

CatalogPath = Annotated[str, arg(metavar="PATH"), tyro.conf.Positional]
Name = Annotated[str, arg(metavar="POLICY"), tyro.conf.Positional]
Reference = Annotated[str, arg(metavar="POLICY[@REVISION]"), tyro.conf.Positional]
File = Annotated[Path, arg(metavar="FILE"), tyro.conf.Positional]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
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
class Tag:
    """Add and remove tags of a policy, or give it to an owner."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Name
    """Whose tags."""
    add: tuple[str, ...] = ()
    """Tags to add."""
    remove: tuple[str, ...] = ()
    """Tags to remove."""
    owner: str | None = None
    """The new owner; an empty one: nobody."""
    expires: str | None = None
    """Not served or trained any more after this: days from now, or a time as 2027-01-31T00:00:00+00:00; `never`."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        catalog.policy(self.policy)
        at = _time(self.expires)
        found = retag(catalog, self.policy, self.add, self.remove)
        if self.owner is not None:
            found = give(catalog, self.policy, self.owner or None)
        if self.expires is not None:
            found = expire(catalog, self.policy, at)
        labels = f"tags {', '.join(found.tags) or 'none'}; owner {found.owner or 'nobody'}"
        print(f"{found.name}: {labels}; expires {found.expires or 'never'}")
        return 0


def _time(text: str | None) -> datetime | None:
    if text in (None, "never"):
        return None
    try:
        return datetime.now(UTC) + timedelta(days=float(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise PefxError(f"--expires '{text}' is neither a number of days, nor a time, nor `never`") from None


@dataclass(frozen=True)
class Alias:
    """Let a name stand for a revision, as in `policy@prod`; or forget the name."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Reference
    """The revision: `policy@number` or `policy@alias`; `policy` for its latest."""
    alias: Annotated[str, arg(metavar="ALIAS"), tyro.conf.Positional]
    """The name."""
    drop: Switch = False
    """Forget the name."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        name, which = parse_reference(self.policy)
        if self.drop:
            drop_alias(catalog, name, self.alias)
            print(f"{name}: no alias {self.alias} any more")
        else:
            found = set_alias(catalog, name, self.alias, which)
            print(f"{name}@{self.alias} is {name}@{found.aliases[self.alias]}")
        return 0


@dataclass(frozen=True)
class Rollback:
    """Let an alias name an older revision. Nothing is copied or removed."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Name
    """The policy."""
    alias: str = "latest"
    """The alias to move; `latest` is what is served where nothing is named."""
    to: int | None = None
    """The revision; by default the one before that which the alias names now."""

    def run(self) -> int:
        found = rollback(Catalog.open(self.path), self.policy, self.alias, self.to)
        print(f"{found.name}@{self.alias} is {found.name}@{found.aliases[self.alias]}")
        return 0


@dataclass(frozen=True)
class Branch:
    """Make a new policy that begins with a revision of another one. No weights are copied."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    source: Reference
    """The revision: `policy@number` or `policy@alias`; `policy` for its latest."""
    name: Annotated[str, arg(metavar="NEW"), tyro.conf.Positional]
    """The name of the new policy."""
    owner: str | None = None
    """Its owner."""

    def run(self) -> int:
        source, which = parse_reference(self.source)
        found = branch(Catalog.open(self.path), source, self.name, which, self.owner)
        print(f"{found.key} is {found.parent}  {found.content_hash}")
        return 0


@dataclass(frozen=True)
class Retire:
    """Serve and train a policy, or serve one of its revisions, no more, for good."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Reference
    """`policy` for all of it, `policy@number` for one revision."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        name, which = parse_reference(self.policy)
        if which is None:
            retire(catalog, name)
        else:
            retire_revision(catalog, name, catalog.get(name, which).number)
        print(f"{self.policy} is retired")
        return 0


@dataclass(frozen=True)
class Gc:
    """Remove revisions that were retired or have expired long ago, and weights that no revision names."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    days: float = 7.0
    """How long what is over stays."""
    dry_run: Switch = False
    """Only say what would be removed."""
    compact: Switch = False
    """Rewrite the folder afterwards, so that the disk space is free. Writers wait meanwhile."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        with _progress("gc", "records", None) as step:
            found = collect(catalog, timedelta(days=self.days), self.dry_run, step)
        would = "would remove" if self.dry_run else "removed"
        print(f"{would} {found.revisions:,} revisions and {found.blobs:,} blobs of {size(found.blob_bytes)}")
        if self.compact and not self.dry_run:
            with _progress("compact", "records", None) as step:
                done = compact(catalog, step)
            print(f"rewritten: {size(done.before)} on disk before, {size(done.after)} now")
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
        with _progress("audit", "revisions", total) as step:
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
        with _progress("stats", "records", None) as step:
            found = stats(catalog, step)
        print(as_json(found.plain()) if self.json else stats_table(found, catalog.location))
        return 0


@dataclass(frozen=True)
class Export:
    """Write a catalog, or a slice of it, to a tar file. Started again, it goes on."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    file: File
    """The tar file; it appears when it is whole."""
    prefix: str = ""
    """Only policies whose name starts with this."""
    tag: str | None = None
    """Only policies with this tag."""
    owner: str | None = None
    """Only policies of this owner."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        with _progress("export", "policies", None) as step:
            done = export_tar(catalog, self.file, Slice(self.prefix, self.tag, self.owner), step)
        print(f"{self.file}: {done:,} policies, {size(self.file.stat().st_size)}")
        return 0


@dataclass(frozen=True)
class Import:
    """Write what a tar file of `export` holds into a catalog. Started again, it goes on."""

    path: CatalogPath
    """The folder or URL of the catalog; made if absent."""
    file: File
    """The tar file."""

    def run(self) -> int:
        if not self.file.is_file():
            raise PefxError(f"{self.file}: no such file")
        catalog = Catalog.open(self.path, create=True)
        with _progress("import", "policies", None) as step:
            found = import_tar(catalog, self.file, step)
        print(f"{found.policies:,} policies with {found.revisions:,} revisions; {found.there:,} were there already")
        for told in found.refused:
            print(f"error: refused: {told}", file=sys.stderr)
        return 2 if found.refused else 0


@dataclass(frozen=True)
class ImportPeft:
    """Commit a PEFT directory, or every one under a folder, each as a policy of its own. Started again, it goes on."""

    path: CatalogPath
    """The folder or URL of the catalog; made if absent."""
    folder: File
    """A directory with adapter_config.json, or a folder of such."""
    base: Path
    """The directory of the base that they were trained on."""
    name: str | None = None
    """The policy, where there is but one."""
    prefix: str = ""
    """What policy names begin with; the rest is the path within the folder."""
    owner: str | None = None
    """The owner of new policies."""
    tags: tuple[str, ...] = ()
    """Tags of the policies."""

    def run(self) -> int:
        from pefx.exchange import Base, import_peft

        base = Base(self.base)
        catalog = Catalog.open(self.path, create=True)
        with _progress("import", "adapters", None) as step:
            found = import_peft(catalog, self.folder, base, self.prefix, self.name, self.owner, self.tags, step)
        return _told(found.revisions, found.refused, "committed")


@dataclass(frozen=True)
class ExportPeft:
    """Write a revision as a PEFT directory, or with --prefix the latest of each policy into a folder of them."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Annotated[str | None, arg(metavar="POLICY[@REVISION]"), tyro.conf.Positional]
    """`policy` for its latest revision, `policy@number` or `policy@alias`; `-` with --prefix."""
    target: File
    """The directory to write."""
    base: Path
    """The directory of the base that it was trained on."""
    prefix: str | None = None
    """All policies whose name starts with this; an empty one: all."""
    layout: Literal["fused", "per_expert", "shared_outer"] = "fused"
    """How routed experts are written: for PEFT with transformers 5, for transformers 4 and vLLM, or for SGLang."""
    precision: Precision | None = None
    """What its numbers are held in; None: as they are stored."""

    def run(self) -> int:
        from pefx.exchange import Base, export_many, export_peft

        catalog, base = Catalog.open(self.path, read_only=True), Base(self.base)
        if (self.prefix is None) == (self.policy in (None, "-")):
            raise PefxError("pefx catalog export-peft: name one policy, or `-` and a --prefix")
        if self.prefix is not None:
            with _progress("export", "policies", None) as step:
                many = export_many(catalog, self.prefix, base, self.target, self.layout, self.precision, step)
            return _told(many.revisions, many.refused, "written")
        revision = catalog.serving(*parse_reference(str(self.policy)))
        export_peft(catalog, revision, base, self.target, self.layout, self.precision)
        return _told([revision.key], [], "written")


@dataclass(frozen=True)
class Merge:
    """Write the base with a revision in its weights, as a Hugging Face checkpoint."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Reference
    """`policy` for its latest revision, `policy@number` or `policy@alias`."""
    target: File
    """The directory to make; it appears when it is complete."""
    base: Path
    """The directory of the base that it was trained on."""

    def run(self) -> int:
        from pefx.exchange import Base, merge_revision

        catalog = Catalog.open(self.path, read_only=True)
        revision = catalog.serving(*parse_reference(self.policy))
        merge_revision(catalog, revision, Base(self.base), self.target)
        print(f"{self.target}: {self.base} with {revision.key}")
        return 0


def _told(done: list[str], refused: list[str], what: str) -> int:
    """Says what a bulk command did; returns its exit code."""
    for key in done[:20]:
        print(f"{what} {key}")
    if len(done) > 20:
        print(f"... {len(done):,} in all")
    for told in refused:
        print(f"error: refused: {' '.join(told.split())}", file=sys.stderr)
    return 2 if refused else 0


@contextmanager
def _progress(name: str, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A line about how many are done, on the error stream: the output is the command's result."""
    console = Console(stderr=True)
    start = datetime.now(UTC)
    done = 0
    with Display(name, total or 0, 0, console) as display:

        def step(count: int) -> None:
            nonlocal done
            done += count
            seconds = (datetime.now(UTC) - start).total_seconds()
            rate = done / max(seconds, 1e-6)
            left = f", {clock((total - done) / max(rate, 1e-6))} left" if total else ""
            of = f"/{total:,}" if total else ""
            display.show(done, f"{done:,}{of} {what}, {rate:,.0f}/s{left}")

        yield step


Action = (
    Annotated[Ls, subcommand("ls")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Log, subcommand("log")]
    | Annotated[Diff, subcommand("diff")]
    | Annotated[Tag, subcommand("tag")]
    | Annotated[Alias, subcommand("alias")]
    | Annotated[Rollback, subcommand("rollback")]
    | Annotated[Branch, subcommand("branch")]
    | Annotated[Retire, subcommand("retire")]
    | Annotated[Gc, subcommand("gc")]
    | Annotated[Audit, subcommand("audit")]
    | Annotated[Stats, subcommand("stats")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
    | Annotated[ImportPeft, subcommand("import-peft")]
    | Annotated[ExportPeft, subcommand("export-peft")]
    | Annotated[Merge, subcommand("merge")]
)
