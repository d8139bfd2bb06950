"""An adapter folded into a checkpoint on disk: a Hugging Face directory like the base's, with other numbers.

A file of the base becomes a file of the merged checkpoint, its tensors streamed from one to the other in blocks of
rows: memory does not grow with the base. Sums are those of `pefx.adapters.merge`, in float32 on the CPU, whatever
accelerator there is; each tensor is rounded to the type it is stored in.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pefx.adapters.merge import sum_of
from pefx.adapters.methods.recipe import check_exchangeable
from pefx.adapters.methods.table import Adapter, check_shapes, scale
from pefx.adapters.peft_names import Place, module_name
from pefx.adapters.sites import SITES, layers_with
from pefx.complete_directory import complete_directory
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.families.config_json import read_config, read_json
from pefx.safetensors_files import StoredTensor, read_headers
from pefx.stored_weights import FLOATS

# Says which adapter is in a checkpoint.
MERGED = "merged_adapter.json"
# Beside the tensors of a base, these are no part of what is copied: its weights in other formats, and its description.
LEFT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".bin.index.json")
CARD = "README.md"
BLOCK = 1 << 24  # numbers of a tensor that are summed at once


class Change(NamedTuple):
    """What is added to a tensor `[out, in]`: a `[R, in]` and b `[R, out]`."""

    a: np.ndarray
    b: np.ndarray


def merge_checkpoint(
    base_directory: str | Path,
    adapter: Adapter,
    spec: AdapterSpec,
    target_directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the base of a Hugging Face directory with an adapter in its weights, `W + s (A B)`, as another.

    Files, types and index are the base's, and what lies beside its weights (tokenizer, configuration) is copied, but
    for its README. `merged_adapter.json` names the adapter's spec and holds `provenance`. The target appears when it is
    complete. Raises PefxError: of kind "conflict" if the target is there, "bad_adapter" where a factor does not fit or
    the unembedding is the embedding too, "not_finite" where a sum does not fit a tensor's type, and where the base is
    quantised or lacks a tensor.
    """
    source, target = Path(base_directory), Path(target_directory)
    config, raw = read_config(source), read_json(source / "config.json")
    check_exchangeable(spec)
    check_shapes(config, spec, {site: {k: np.shape(x) for k, x in pair.items()} for site, pair in adapter.items()})
    if raw.get("quantization_config") is not None:
        told = f"{source / 'config.json'}: quantization_config is set; only a base that is not quantised can be merged"
        raise PefxError(f"{told} into, so convert it to bfloat16 first")
    if "unembed" in adapter and config.tied_embedding:
        told = f"{source / 'config.json'}: tie_word_embeddings is true: the unembedding is the embedding too"
        raise PefxError(f"{told}, and an adapter of it cannot be merged", "bad_adapter")
    tensors = read_headers(source)
    changes = dict(_changes(adapter, config))
    _check_tensors(tensors, changes, source)
    with complete_directory(target) as partial:
        for file in sorted({tensor.file for tensor in tensors.values()}):
            own = sorted((t for t in tensors.values() if t.file == file), key=lambda t: t.begin)
            _write_file(file, own, changes, scale(spec), partial / file.name)
        for path in _beside(source):
            shutil.copyfile(path, partial / path.name)
        told = {"spec": {**vars(spec), "targets": list(spec.targets)}, "provenance": dict(provenance or {})}
        (partial / MERGED).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
        # Last: without it, what a killed run leaves is no checkpoint, even under its hidden name.
        shutil.copyfile(source / "config.json", partial / "config.json")


def _changes(adapter: Adapter, config: ModelConfig) -> Iterator[tuple[str, Change]]:
    """What is added to which tensor."""
    for site, pair in adapter.items():
        a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
        experts = SITES[site].kind == "experts"
        for at, layer in enumerate(layers_with(config, site)):
            for e in range(config.experts) if experts else (-1,):
                own = [x[at, e] if experts and x.ndim == 4 else x[at] for x in (a, b)]
                yield f"{module_name(config, Place(site, layer, e))}.weight", Change(*own)


def _check_tensors(tensors: Mapping[str, StoredTensor], changes: Mapping[str, Change], source: Path) -> None:
    for name, change in changes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise PefxError(f"{source}: tensor '{name}' is missing")
        shape = (change.b.shape[1], change.a.shape[1])
        if tensor.shape != shape:
            raise PefxError(f"{tensor.file}: tensor '{name}' has shape {tensor.shape}, config.json says {shape}")
        if tensor.dtype not in FLOATS:
            told = f"{tensor.file}: tensor '{name}' is {tensor.dtype}; to be merged into, it must be float32, float16"
            raise PefxError(f"{told} or bfloat16")


def _beside(source: Path) -> list[Path]:
    """The files of a base that are copied as they are, the index among them."""
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    left = {"config.json", CARD, MERGED}
    return [path for path in files if path.name not in left and not path.name.endswith(LEFT)]


def _write_file(
    source: Path, tensors: list[StoredTensor], changes: Mapping[str, Change], factor: float, target: Path
) -> None:
    """One file: the header as it is, and tensor after tensor as they lie, since no shape or type changes."""
    begin = min((tensor.begin for tensor in tensors), default=source.stat().st_size)
    with open(source, "rb") as old, open(target, "wb") as new:
        new.write(old.read(begin))
        for tensor in tensors:
            change = changes.get(tensor.name)
            parts = tensor.chunks() if change is None else _merged(tensor, change, factor)
            for part in parts:
                new.write(part.reshape(-1).view(np.uint8).data)


def _merged(tensor: StoredTensor, change: Change, factor: float) -> Iterator[np.ndarray]:
    """The rows of a tensor with its change, in the stored type, a block at a time."""
    rows, columns = tensor.shape
    # Blocks of about one height: none is a single row, whose product would be rounded otherwise.
    count = max(1, math.ceil(rows * columns / BLOCK))
    cuts = [rows * i // count for i in range(count + 1)]
    a = np.asarray(change.a, np.float32)
    with jax.default_device(_cpu()):
        for start, stop in pairwise(cuts):
            old = tensor.read((slice(start, stop), slice(0, columns)))
            new = np.asarray(sum_of(old, a, np.asarray(change.b[:, start:stop], np.float32), factor))
            if not np.isfinite(new).all():
                told = f"{tensor.file}: tensor '{tensor.name}' with the adapter has values that {tensor.dtype} has not"
                raise PefxError(told, "not_finite")
            yield new


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise PefxError("merging runs on the CPU, which JAX_PLATFORMS leaves out; add 'cpu' to it") from None
