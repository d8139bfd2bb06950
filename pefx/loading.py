"""Bases from disk, in either form, straight to where their shards lie.

Each process reads only what its own devices hold, a parameter at a time: beside the base itself there is never more in
memory than the shards of one parameter, and one tensor of the checkpoint.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pefx.config import Precision
from pefx.converted import ConvertedBase, is_converted
from pefx.errors import PefxError
from pefx.families.config_json import extra_prefixes, read_config, read_json
from pefx.families.tables import TOP_TENSORS
from pefx.huggingface import base_digest, parameters, sources
from pefx.model import Base, abstract_base
from pefx.safetensors_files import Index, read_headers, spans
from pefx.stored_weights import StoredWeights, fp8_blocks, same_tensor

# Where a parameter of the base lies, by its metadata (see `pefx.layers.parameter`).
Placement = Callable[[nnx.Variable], jax.sharding.Sharding]


class HuggingFaceBase:
    """A base in a Hugging Face directory; see `load_base` for what is refused. Opening it reads headers only."""

    def __init__(self, directory: Path):
        self.directory, self.config = directory, read_config(directory)
        path = directory / "config.json"
        raw = read_json(path)
        extra = extra_prefixes(raw, self.config)
        self.tensors = {name: x for name, x in read_headers(directory).items() if not name.startswith(extra)}
        if self.config.tied_embedding:
            copy, embed = TOP_TENSORS["unembed"], self.tensors.get(TOP_TENSORS["embed"])
            tied = self.tensors.pop(copy, None)
            if tied is not None and embed is not None and not same_tensor(tied, embed):
                raise PefxError(f"{tied.file}: tensor '{copy}' is not the embedding, to which config.json ties it")
        self.weights = StoredWeights(self.tensors, directory, fp8_blocks(raw, path))
        base = abstract_base(self.config)
        self.sources = sources(base)
        wanted = {path: (self.sources[path], variable.shape) for path, variable in parameters(base).items()}
        self.weights.check(wanted, self.config.family)

    def digest(self) -> str:
        return base_digest(self.config, self.tensors)

    def read(self, path: str, index: Index, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self.weights.read(self.sources[path], index, shape, dtype)


# A base on disk: its `config`, the `digest()` that names it, and `read` for any part of its parameters, by path.
StoredBase = HuggingFaceBase | ConvertedBase


def load_base(
    directory: str | Path, precision: Precision | None = None, placement: Placement | None = None
) -> tuple[Base, str]:
    """The base of a directory and its digest, at `precision` (default: as stored), each parameter laid out by
    `placement` (default: whole, on the default device).

    Raises PefxError for a missing, misshapen or foreign tensor, naming file and tensor; nothing is dropped.
    """
    stored = open_base(Path(directory))
    config = stored.config if precision is None else dataclasses.replace(stored.config, precision=precision)
    digest = stored.digest()

    def load(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return variable.replace(_load(stored, name, variable, placement))

    base = abstract_base(config)
    base = jax.tree_util.tree_map_with_path(load, base, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return base, digest


def open_base(directory: Path) -> StoredBase:
    """A base on disk, whichever form it has; raises PefxError like `load_base`."""
    return ConvertedBase(directory) if is_converted(directory) else HuggingFaceBase(directory)


def _load(stored: StoredBase, name: str, variable: nnx.Variable, placement: Placement | None) -> jax.Array:
    """One parameter. Devices that hold the same part share one reading of it."""
    shape, dtype = variable.shape, np.dtype(variable.dtype)
    if placement is None:
        return jnp.asarray(stored.read(name, tuple(slice(0, n) for n in shape), shape, dtype))
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
        index = tuple(slice(0, n) for n in shape) if index is None else index
        bounds = tuple(spans(index, shape))
        if bounds not in parts:
            parts[bounds] = stored.read(name, index, shape, dtype)
        return parts[bounds]

    return jax.make_array_from_callback(shape, placement(variable), part)
