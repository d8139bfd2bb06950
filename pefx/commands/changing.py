"""Commands of `pefx catalog` that change policies, or what the catalog holds."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import tyro
from tyro.conf import arg

from pefx.commands.shown import CatalogPath, Name, Reference, Switch, progress, say
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, drop_alias, expire, give, retag, retire, retire_revision, rollback, set_alias
from pefx.store.listing import size
from pefx.store.names import check_label, parse_reference

LONGEST_DAYS = 100_000


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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        catalog.policy(self.policy)
        at = _time(self.expires)
        if self.owner:
            check_label("owner", self.owner)
        found = retag(catalog, self.policy, self.add, self.remove)
        if self.owner is not None:
            found = give(catalog, self.policy, self.owner or None)
        if self.expires is not None:
            found = expire(catalog, self.policy, at)
        labels = f"tags {', '.join(found.tags) or 'none'}; owner {found.owner or 'nobody'}"
        say(self.json, found, f"{found.name}: {labels}; expires {found.expires or 'never'}")
        return 0


def _time(text: str | None) -> datetime | None:
    if text in (None, "never"):
        return None
    try:
        return datetime.now(UTC) + timedelta(days=float(text))
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.fromisoformat(text)
        at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise PefxError(f"--expires '{text}' is neither a number of days, nor a time, nor `never`") from None
    if at.tzinfo is None:
        raise PefxError(f"--expires '{text}' has no zone; add one, as in +00:00")
    return at


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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        name, which = parse_reference(self.policy)
        if self.drop:
            found = drop_alias(catalog, name, self.alias)
            say(self.json, found, f"{name}: no alias {self.alias} any more")
        else:
            found = set_alias(catalog, name, self.alias, which)
            say(self.json, found, f"{name}@{self.alias} is {name}@{found.aliases[self.alias]}")
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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        found = rollback(Catalog.open(self.path), self.policy, self.alias, self.to)
        say(self.json, found, f"{found.name}@{self.alias} is {found.name}@{found.aliases[self.alias]}")
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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        source, which = parse_reference(self.source)
        found = branch(Catalog.open(self.path), source, self.name, which, self.owner)
        say(self.json, found, f"{found.key} is {found.parent}  {found.content_hash}")
        return 0


@dataclass(frozen=True)
class Retire:
    """Serve and train a policy, or serve one of its revisions, no more, for good."""

    path: CatalogPath
    """The folder or URL of the catalog."""
    policy: Reference
    """`policy` for all of it, `policy@number` for one revision."""
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        catalog = Catalog.open(self.path)
        name, which = parse_reference(self.policy)
        if which is None:
            found = retire(catalog, name)
        else:
            found = retire_revision(catalog, name, catalog.get(name, which).number)
        say(self.json, found, f"{self.policy} is retired")
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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        if not 0 <= self.days <= LONGEST_DAYS:
            raise PefxError(f"--days {self.days} is none of 0 to {LONGEST_DAYS:,}")
        catalog = Catalog.open(self.path)
        with progress("gc", "records", None) as step:
            found = collect(catalog, timedelta(days=self.days), self.dry_run, step)
        would = "would remove" if self.dry_run else "removed"
        text = f"{would} {found.revisions:,} revisions and {found.blobs:,} blobs of {size(found.blob_bytes)}"
        told = {"dry_run": self.dry_run, **vars(found)}
        if self.compact and not self.dry_run:
            with progress("compact", "records", None) as step:
                done = compact(catalog, step)
            text += f"\nrewritten: {size(done.before)} on disk before, {size(done.after)} now"
            told["disk_bytes"] = vars(done)
        say(self.json, told, text)
        return 0
