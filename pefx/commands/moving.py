"""Commands of `pefx catalog` that carry policies in and out."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from pefx.commands.shown import CatalogPath, File, Reference, Switch, progress, say, tell
from pefx.config import Precision
from pefx.errors import PefxError
from pefx.store.archive import Slice, check_archive, export_tar, import_tar
from pefx.store.catalog import Catalog
from pefx.store.listing import size
from pefx.store.names import parse_reference


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
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        catalog = Catalog.open(self.path, read_only=True)
        with progress("export", "policies", None) as step:
            done = export_tar(catalog, self.file, Slice(self.prefix, self.tag, self.owner), step)
        told = {"file": str(self.file), "policies": done, "bytes": self.file.stat().st_size}
        say(self.json, told, f"{self.file}: {done:,} policies, {size(told['bytes'])}")
        return 0


@dataclass(frozen=True)
class Import:
    """Write what a tar file of `export` holds into a catalog. Started again, it goes on."""

    path: CatalogPath
    """The folder or URL of the catalog; made if absent."""
    file: File
    """The tar file."""
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        if not self.file.is_file():
            raise PefxError(f"{self.file}: no such file")
        check_archive(self.file)  # before a catalog is made for it
        catalog = Catalog.open(self.path, create=True)
        with progress("import", "policies", None) as step:
            found = import_tar(catalog, self.file, step)
        text = f"{found.policies:,} policies with {found.revisions:,} revisions; {found.there:,} were there already"
        say(self.json, found, text)
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
        with progress("import", "adapters", None) as step:
            found = import_peft(catalog, self.folder, base, self.prefix, self.name, self.owner, self.tags, step)
        return tell(found.revisions, found.refused, "committed")


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
            with progress("export", "policies", None) as step:
                many = export_many(catalog, self.prefix, base, self.target, self.layout, self.precision, step)
            return tell(many.revisions, many.refused, "written")
        revision = catalog.serving(*parse_reference(str(self.policy)))
        export_peft(catalog, revision, base, self.target, self.layout, self.precision)
        return tell([revision.key], [], "written")


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
