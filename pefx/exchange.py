"""Between a catalog and Hugging Face directories: PEFT adapters in and out, one or many, and merged checkpoints."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pefx import model
from pefx.adapters.applied import as_lora
from pefx.adapters.checkpoint_merge import merge_checkpoint
from pefx.adapters.methods.recipe import needs_room
from pefx.adapters.methods.table import Adapter, check_shapes
from pefx.adapters.peft import find_adapters, read_peft
from pefx.adapters.peft_config import CONFIG, TENSORS
from pefx.adapters.peft_writing import Layout, write_peft
from pefx.config import AdapterSpec, ModelConfig, Precision
from pefx.errors import PefxError
from pefx.loading import load_base, open_base
from pefx.safetensors_files import read_header
from pefx.store.catalog import Catalog, require_base
from pefx.store.commits import Draft
from pefx.store.encoding import to_plain
from pefx.store.names import check_name
from pefx.store.records import Revision


@dataclass
class Exchanged:
    """What a bulk exchange did: revisions that went over, and what was refused, with why."""

    revisions: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Base:
    """A base on disk as far as adapters are concerned: its directory, shape and digest; its weights where asked for."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise PefxError(f"{directory}: no such directory; a base is a directory with config.json and weights")
        stored = open_base(self.directory)
        self.config: ModelConfig = stored.config
        self.digest: str = stored.digest()

    @cached_property
    def weights(self) -> model.Base:
        """The base itself, in float32: what factors that follow from it are made with."""
        return load_base(str(self.directory))[0]


def import_peft(
    catalog: Catalog,
    folder: str | Path,
    base: Base,
    prefix: str = "",
    name: str | None = None,
    owner: str | None = None,
    tags: tuple[str, ...] = (),
    step: Callable[[int], None] = lambda adapters: None,
) -> Exchanged:
    """Commit every PEFT directory under `folder` (itself included): each a revision of the policy `prefix` + its path
    within `folder`, or where there is but one, of `name`. What is committed already stays as it is.

    One that cannot be read, or does not fit the base or its policy, is refused, and the others go on. PefxError where
    there is none at all, or a `name` for several. `step` hears of adapters read.
    """
    folder, found = Path(folder), Exchanged()
    directories = find_adapters(folder)
    if not directories:
        raise PefxError(f"{folder}: holds no {CONFIG}; an adapter is a PEFT directory")
    if name is not None and len(directories) > 1:
        raise PefxError(f"{folder}: holds {len(directories)} adapters, which cannot all be '{name}'; use a prefix")

    def drafts() -> Iterator[Draft]:
        for directory in directories:
            step(1)
            try:
                yield _draft(directory, name or prefix + _policy(directory, folder), base, owner, tags)
            except PefxError as error:
                found.refused.append(f"{directory}: {error}" if str(directory) not in str(error) else str(error))

    # One at a time as well: what the catalog refuses must not hold up those that came with it.
    for draft in drafts():
        try:
            found.revisions += [revision.key for revision in catalog.commit_many([draft])]
        except PefxError as error:
            if error.kind in ("storage", "read_only"):
                raise
            found.refused.append(str(error))
    return found


def _policy(directory: Path, folder: Path) -> str:
    inner = directory.relative_to(folder)
    return folder.resolve().name if inner == Path() else inner.as_posix()


def _draft(directory: Path, policy: str, base: Base, owner: str | None, tags: tuple[str, ...]) -> Draft:
    check_name(policy)
    adapter, spec = read_peft(directory, base.config)
    fingerprint = hashlib.sha256((directory / TENSORS).read_bytes()).hexdigest()
    return Draft(
        policy=policy,
        adapter=_as_stored(adapter, directory / TENSORS),
        spec=spec,
        base=base.digest,
        step=0,
        seeds={},
        config={"imported": json.loads((directory / CONFIG).read_text())},
        data_fingerprint=f"sha256:{fingerprint}",
        metrics={},
        owner=owner,
        tags=tags,
    )


def _as_stored(adapter: Adapter, file: Path) -> Adapter:
    """The adapter in the file's own type where that loses nothing: then exporting it gives the same numbers again."""
    types = {tensor.dtype for tensor in read_header(file).values()}
    if len(types) != 1:
        return adapter
    (kind,) = types
    narrow = {site: {k: x.astype(kind) for k, x in pair.items()} for site, pair in adapter.items()}
    same = all(
        np.array_equal(narrow[site][k].astype(np.float32), x) for site, pair in adapter.items() for k, x in pair.items()
    )
    return narrow if same and kind.itemsize <= 4 else adapter


def export_peft(
    catalog: Catalog,
    revision: Revision,
    base: Base,
    target: str | Path,
    layout: Layout = "fused",
    precision: Precision | None = None,
) -> None:
    """Write `revision` as a PEFT directory; see `pefx.adapters.peft_writing` for layouts and errors.

    PefxError kind "wrong_base" where it belongs to another base.
    """
    adapter, spec = load_for(catalog, revision, base)
    write_peft(target, adapter, spec, base.config, layout, str(base.directory), precision)


def export_many(
    catalog: Catalog,
    prefix: str,
    base: Base,
    target: str | Path,
    layout: Layout = "fused",
    precision: Precision | None = None,
    step: Callable[[int], None] = lambda policies: None,
) -> Exchanged:
    """`export_peft` for the latest revision of every policy whose name starts with `prefix`, to `target/<policy>`.

    One that cannot be written is refused, and the others go on. PefxError where there is no such policy.
    """
    found = Exchanged()
    for policy in catalog.policies(prefix):
        step(1)
        try:
            revision = catalog.serving(policy)
            export_peft(catalog, revision, base, Path(target) / policy, layout, precision)
            found.revisions.append(revision.key)
        except PefxError as error:
            if error.kind == "storage":
                raise
            found.refused.append(f"policy '{policy}': {error}")
    if not found.revisions and not found.refused:
        raise PefxError(f"catalog '{catalog.location}' holds no policy that starts with '{prefix}'")
    return found


def merge_revision(catalog: Catalog, revision: Revision, base: Base, target: str | Path) -> None:
    """Write the base with `revision` in its weights; see `pefx.adapters.checkpoint_merge`.

    PefxError kind "wrong_base" where it belongs to another base.
    """
    told = {**to_plain(revision), "revision": revision.key}
    adapter, spec = load_for(catalog, revision, base)
    merge_checkpoint(base.directory, adapter, spec, target, told)


def load_for(catalog: Catalog, revision: Revision, base: Base) -> tuple[Adapter, AdapterSpec]:
    """The adapter of `revision`, which must fit `base`, as factors of LoRA, with their spec."""
    require_base(revision, base.digest)
    adapter = catalog.load(revision)
    shapes = {site: {k: np.shape(x) for k, x in pair.items()} for site, pair in adapter.items()}
    check_shapes(base.config, revision.spec, shapes)
    if not needs_room(revision.spec):
        return adapter, revision.spec
    return as_lora(base.weights, adapter, revision.spec, base.digest)
