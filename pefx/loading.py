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

from pefx.config import ModelConfig, Precision, Weights
from pefx.converted import ConvertedBase, is_converted
from pefx.errors import PefxError
from pefx.families.config_json import extra_prefixes, read_config, read_json
from pefx.families.tables import TOP_TENSORS
from pefx.huggingface import base_digest, parameters, sources
from pefx.layers.quantised import blocks_of, quantise
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
    directory: str | Path,
    precision: Precision | None = None,
    placement: Placement | None = None,
    weights: Weights = "plain",
) -> tuple[Base, str]:
    """The base of a directory and its digest, at `precision` (default: as stored), each parameter laid out by
    `placement` (default: whole, on the default device), its large matrices held as `weights` says.

    Raises PefxError for a missing, misshapen or foreign tensor, naming file and tensor; nothing is dropped.
    """
    stored = open_base(Path(directory))
    config = dataclasses.replace(stored.config, precision=precision or stored.config.precision, weights=weights)
    digest = stored.digest()
    reader = stored if weights == "plain" else _Quantising(stored, config)

    def load(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return variable.replace(_load(reader, name, variable, placement))

    base = abstract_base(config)
    base = jax.tree_util.tree_map_with_path(load, base, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return base, digest


def open_base(directory: Path) -> StoredBase:
    """A base on disk, whichever form it has; raises PefxError like `load_base`."""
    return ConvertedBase(directory) if is_converted(directory) else HuggingFaceBase(directory)


class _Quantising:
    """Reads the 8-bit values and the scales of a quantised base out of one that is stored, a layer at a time."""

    def __init__(self, stored: StoredBase, config: ModelConfig):
        self.stored, self.form = stored, config.weights
        self.wide = parameters(abstract_base(dataclasses.replace(config, weights="plain")))

    def read(self, name: str, index: Index, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if name in self.wide:
            return self.stored.read(name, index, shape, dtype)
        path, _, part = name.rpartition(".")
        whole = self.wide[path]
        blocks = blocks_of(whole.shape)
        bounds = spans(index, shape)
        inner = [(a * b, z * b) if part == "scales" else (a, z) for (a, z), b in zip(bounds[-2:], blocks)]
        # Whole blocks are read: a scale is of all its numbers.
        outer = [(a // b * b, -(-z // b) * b) for (a, z), b in zip(inner, blocks)]
        crop = tuple(slice(a - c, z - c) for (a, z), (c, _) in zip(inner, outer))
        out = np.empty([stop - start for start, stop in bounds], dtype)
        for at, layer in enumerate(range(*bounds[0])):
            region = ((layer, layer + 1), *bounds[1:-2], *outer)
            wide = self.stored.read(path, tuple(slice(*x) for x in region), whole.shape, np.dtype(whole.dtype))
            values, scales = quantise(wide.astype(np.float32), self.form, blocks)
            out[at] = scales[0] if part == "scales" else values[0][(..., *crop)]
        return out


def _load(
    stored: StoredBase | _Quantising, name: str, variable: nnx.Variable, placement: Placement | None
) -> jax.Array:
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
