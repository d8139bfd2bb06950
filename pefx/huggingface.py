"""Bases as Hugging Face directories: `config.json`, `*.safetensors`, `tokenizer.json`, by `pefx.families`.

The digest of a base is over the stored tensors and the shape, so it is the same at whatever precision it is loaded.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from pefx.config import ModelConfig, Precision
from pefx.families.config_json import config_json
from pefx.families.tables import FAMILIES, FLOAT32_TENSORS, TOP_TENSORS
from pefx.model import Base, Segment, runs
from pefx.safetensors_files import StoredTensor
from pefx.stored_weights import Source

# Fields of the shape that are in every digest. Those that came later are in it where they are not their default: a
# base keeps its digest when the shape learns a new field.
HASHED = {
    "family", "vocab_size", "hidden", "layers", "heads", "kv_heads", "head_size", "dense_hidden", "expert_hidden",
    "experts", "experts_per_token", "normalize_gates", "dense_layers", "rope_theta", "norm_epsilon", "tied_embedding",
    "context",
}  # fmt: skip

# How a base is held in memory is no part of what it is.
HELD = {"precision", "weights"}


def save_base(
    base: Base,
    directory: str | Path,
    tokenizer_json: str | Path,
    card: str | None = None,
    precision: Precision | None = None,
) -> str:
    """Write a base in Hugging Face layout, its tokenizer beside it (and `tokenizer_config.json`, if there is one).

    Returns the digest. Files are written beside and renamed, the weights last; the card becomes `README.md`.
    """
    directory, tokenizer_json = Path(directory), Path(tokenizer_json)
    directory.mkdir(parents=True, exist_ok=True)
    precision = precision or base.config.precision
    tensors = {
        name: np.ascontiguousarray(x.astype("float32" if name.endswith(FLOAT32_TENSORS) else precision))
        for name, x in base_tensors(base)
    }
    for source in (tokenizer_json, tokenizer_json.with_name("tokenizer_config.json")):
        target = directory / source.name
        if source.exists() and source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    (directory / "config.json").write_text(json.dumps(config_json(base.config, precision), indent=2) + "\n")
    if card is not None:
        (directory / "README.md").write_text(card)
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / "model.safetensors")
    return base_digest(base.config, tensors)


def base_digest(config: ModelConfig, tensors: Mapping[str, np.ndarray | StoredTensor]) -> str:
    """`sha256:` over the shape (without precision) and the named tensors as stored; those of files by pieces."""
    digest = hashlib.sha256(_shape(config))
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        for piece in value.chunks() if isinstance(value, StoredTensor) else [np.ascontiguousarray(value)]:
            digest.update(piece.reshape(-1).view(np.uint8).data)
    return "sha256:" + digest.hexdigest()


def shape_digest(config: ModelConfig) -> str:
    """`sha256:` over the shape alone."""
    return "sha256:" + hashlib.sha256(_shape(config)).hexdigest()


def _shape(config: ModelConfig) -> bytes:
    default, shape = dataclasses.asdict(ModelConfig()), dataclasses.asdict(config)
    shape = {k: v for k, v in shape.items() if k in HASHED or (k not in HELD and v != default[k])}
    return json.dumps(shape, sort_keys=True).encode()


def base_tensors(base: Base) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a base under its Hugging Face name and in its layout."""
    if base.config.weights != "plain":
        raise ValueError(f"a base in {base.config.weights} has lost what its tensors were")
    values = parameters(base)
    for path, source in sources(base).items():
        stacked = np.asarray(values[path][...])
        for place in np.ndindex(source.names.shape):
            yield str(source.names[place]), stacked[place].T if source.transposed else stacked[place]


def parameters(base: Base) -> dict[str, nnx.Variable]:
    """The parameters of a base (abstract or not) by path, e.g. `segments.0.block.input_norm`."""
    leaves = jax.tree_util.tree_flatten_with_path(base, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): variable for path, variable in leaves}


def sources(base: Base) -> dict[str, Source]:
    """Where the numbers of each parameter of a base (abstract or not) are, by the parameter's path."""
    found = {ours: Source(np.array(theirs, object)) for ours, theirs in TOP_TENSORS.items()}
    if base.config.tied_embedding:
        del found["unembed"]
    for number, (segment, (run, _)) in enumerate(zip(base.segments, runs(base.config), strict=True)):
        for path, name in _segment_names(segment, base.config.family):
            layers = [f"model.layers.{layer}.{name}" for layer in run]
            if "{e}" in name:
                layers = [[layer.format(e=e) for e in range(base.config.experts)] for layer in layers]
            found[f"segments.{number}.{path}"] = Source(np.array(layers, object), transposed="{e}" in name)
    return found


def _segment_names(segment: Segment, family: str) -> list[tuple[str, str]]:
    return [(path, name) for path, name in FAMILIES[family].tensors.items() if _get(segment, path) is not None]


def _get(module: Any, path: str) -> Any:
    for attribute in path.split("."):
        module = getattr(module, attribute, None)
    return module
