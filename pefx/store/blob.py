"""An adapter as one packed blob of safetensors bytes, and the hash that identifies a revision.

Tensors are named `site.a` and `site.b` and lie in one canonical order (widest type first, then by name: the order the
safetensors library writes), so equal adapters give equal bytes. The format is written here, not by the library, because
the bytes are hashed: they must not follow a library's version, and its numpy reader knows no bfloat16.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.records import canonical_json, to_plain

Adapter = Mapping[str, Mapping[str, Any]]
"""{site: {"a": [L, R, in], "b": [L, R, out]}}; expert factors have an expert axis after L."""

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def pack(adapter: Adapter, where: str = "adapter") -> bytes:
    """`adapter` (numpy or jax arrays of float32, float16 or bfloat16) as safetensors bytes, types kept.

    PefxError naming `where` and the tensor for another type or a value that is not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    for site, factors in adapter.items():
        for factor, array in factors.items():
            name = f"{site}.{factor}"
            tensor = np.asarray(array)
            if tensor.dtype not in NAMES:
                raise PefxError(
                    f"{where}: tensor '{name}' is {tensor.dtype}; an adapter is float32, float16 or bfloat16"
                )
            with np.errstate(invalid="ignore"):  # a signalling NaN would warn before it is refused
                bad = tensor.size - int(np.isfinite(tensor).sum())
            if bad:
                told = f"{where}: tensor '{name}' has {bad} NaN or infinite values of {tensor.size}"
                raise PefxError(told, "not_finite")
            tensors[name] = tensor
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, NAMES[tensors[name].dtype], name))
    header, offset = {}, 0
    for name in order:
        tensor, end = tensors[name], offset + tensors[name].nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensors[name].tobytes() for name in order)])


def unpack(data: bytes, where: str = "blob") -> dict[str, dict[str, np.ndarray]]:
    """The adapter in `data`, bit for bit; the arrays are read-only views. PefxError of kind "damaged" otherwise."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        adapter: dict[str, dict[str, np.ndarray]] = {}
        for name in sorted(header):
            entry = header[name]
            begin, end = entry["data_offsets"]
            site, factor = name.rsplit(".", 1)
            dtype = DTYPES[entry["dtype"]]
            flat = np.frombuffer(data, dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
            adapter.setdefault(site, {})[factor] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PefxError(
            f"{where}: the stored weights are damaged ({type(error).__name__}: {error})", "damaged"
        ) from error
    return adapter


def content_hash(data: bytes, spec: AdapterSpec, base: str) -> str:
    """The hash ("sha256:...") of packed bytes, adapter spec and base digest: all that decides a model's behaviour.

    The policy's name, numbers, provenance and times stay out: an interrupted and resumed run ends in the same hash,
    and a branch or an import keeps the one it had.
    """
    identity = {
        "format": "pefx-revision-1",
        "base": base,
        "spec": to_plain(canonical_spec(spec)),
        "weights": hashlib.sha256(data).hexdigest(),
    }
    return "sha256:" + hashlib.sha256(canonical_json(identity, "adapter spec")).hexdigest()


def canonical_spec(spec: AdapterSpec) -> AdapterSpec:
    """`spec` with its targets in order: the order in which they are listed means nothing."""
    return replace(spec, alpha=float(spec.alpha), targets=tuple(sorted(spec.targets)))


def check_adapter(adapter: Adapter, spec: AdapterSpec, where: str) -> None:
    """PefxError unless `adapter` has the sites, factors, axes and rank that `spec` names.

    A target may be absent as a site (a base without dense layers has no dense site), but no site without its target.
    Axes are checked here, sizes against the base where the bank is: the catalog does not know the base's shape.
    """
    unknown = [target for target in spec.targets if target not in SITES]
    if unknown:
        raise PefxError(
            f"{where}: adapter target '{unknown[0]}' is not known; choose from {', '.join(SITES)}", "wrong_target"
        )
    if not adapter:
        raise PefxError(f"{where}: the adapter has no tensors")
    for site, factors in adapter.items():
        if site not in spec.targets:
            raise PefxError(
                f"{where}: site '{site}' is no target of the adapter spec ({', '.join(spec.targets)})", "wrong_target"
            )
        if set(factors) != {"a", "b"}:
            raise PefxError(f"{where}: site '{site}' has factors {sorted(factors)}, needs 'a' and 'b'", "wrong_target")
        for factor in ("a", "b"):
            shape = tuple(np.shape(factors[factor]))
            axes = 3 + _has_experts(site, factor, spec)
            if len(shape) != axes:
                layout = "[L, E, R, size]" if axes == 4 else "[L, R, size]"
                raise PefxError(
                    f"{where}: tensor '{site}.{factor}' has shape {list(shape)}, needs {layout}", "wrong_target"
                )
            if shape[-2] != spec.rank:
                raise PefxError(
                    f"{where}: tensor '{site}.{factor}' has rank {shape[-2]}, the spec says {spec.rank}", "wrong_rank"
                )
        layers = {np.shape(factors[factor])[0] for factor in ("a", "b")}
        if len(layers) != 1:
            raise PefxError(
                f"{where}: the factors of site '{site}' have {sorted(layers)} layers, need the same", "wrong_target"
            )


def _has_experts(site: str, factor: str, spec: AdapterSpec) -> bool:
    """Whether this factor has an expert axis; in `shared_hidden` the hidden-side factor has none."""
    place = SITES[site]
    return place.kind == "experts" and not (spec.expert_form == "shared_hidden" and place.shared == factor)
