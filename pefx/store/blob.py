"""An adapter as one packed blob of safetensors bytes, and the hash that identifies a revision.

Tensors are named `site.leaf` (of LoRA `site.a` and `site.b`) and lie in one canonical order (widest type first, then by
name: the order the safetensors library writes), so equal adapters give equal bytes. The format is written here, not by
the library, because the bytes are hashed: they must not follow a library's version, and its numpy reader knows no
bfloat16.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from pefx.adapters.methods.method import sizes
from pefx.adapters.methods.table import FACTOR, METHODS
from pefx.adapters.sites import SITES, has_experts
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.encoding import canonical_json, to_plain

Adapter = Mapping[str, Mapping[str, Any]]
"""{site: {leaf: [L, rows, columns]}}, "a" and "b" of LoRA; leaves of experts have an expert axis after L."""

Layout = tuple[tuple[tuple[str, str], np.dtype, tuple[int, ...]], ...]
"""Site and factor, type and shape of every tensor."""

# Fields of a spec that came later: at what adapters before them were, they are not told, so that no hash changes.
LATER = {"init": "default", "frozen": "none", "units": 2, "tied": False, "states": 1, "writes": "tokens", "over": ""}
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
EXPONENTS = {
    DTYPES["F32"]: (np.uint32, np.uint32(0x7F800000)),
    DTYPES["F16"]: (np.uint16, np.uint16(0x7C00)),
    DTYPES["BF16"]: (np.uint16, np.uint16(0x7F80)),
}


def pack(adapter: Adapter, where: str = "adapter", spec: AdapterSpec | None = None) -> bytes:
    """`adapter` (numpy or jax arrays of float32, float16 or bfloat16) as safetensors bytes, types kept.

    PefxError naming `where` and the tensor for another type or a value that is not finite; with `spec`, as
    `check_adapter`.
    """
    named = {(site, factor): np.asarray(x) for site, factors in adapter.items() for factor, x in factors.items()}
    _check_factors(adapter, where)
    form = _form(tuple([(name, tensor.dtype, tensor.shape) for name, tensor in named.items()]), spec)
    if form.misfit:
        raise PefxError(f"{where}: {form.misfit[0]}", form.misfit[1])
    data = b"".join([form.head, *[named[name].tobytes() for name in form.order]])
    if not _finite(data, form):
        for name, tensor in named.items():
            with np.errstate(invalid="ignore"):  # a signalling NaN would warn before it is refused
                bad = tensor.size - int(np.isfinite(tensor).sum())
            if bad:
                told = f"{where}: tensor '{'.'.join(name)}' has {bad} NaN or infinite values of {tensor.size}"
                raise PefxError(told, "not_finite")
    return data


@dataclass(frozen=True)
class _Form:
    """How adapters of one layout are written, or why not: `misfit`, and its kind.

    `head` leads the tensors, which follow in `order`; `runs` are the values of each type: type and count.
    """

    misfit: tuple[str, str | None] | None
    head: bytes = b""
    order: tuple[tuple[str, str], ...] = ()
    runs: tuple[tuple[np.dtype, int], ...] = ()


@lru_cache(maxsize=64)
def _form(layout: Layout, spec: AdapterSpec | None) -> _Form:
    """Made once: a population has few layouts."""
    if spec is not None and (misfit := _misfit(layout, spec)):
        return _Form(misfit)
    for (site, factor), dtype, _ in layout:
        if dtype not in NAMES:
            return _Form((f"tensor '{site}.{factor}' is {dtype}; an adapter is float32, float16 or bfloat16", None))
    order = sorted(layout, key=lambda entry: (-entry[1].itemsize, NAMES[entry[1]], ".".join(entry[0])))
    header, offset = {}, 0
    counts: dict[np.dtype, int] = {}
    for (site, factor), dtype, shape in order:
        counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
        end = offset + math.prod(shape) * dtype.itemsize
        header[f"{site}.{factor}"] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return _Form(None, head, tuple(name for name, _, _ in order), tuple(counts.items()))


def _finite(data: bytes, form: _Form) -> bool:
    """Whether no value is NaN or infinite: its exponent would be all ones."""
    begin = len(form.head)
    for dtype, count in form.runs:
        bits, exponent = EXPONENTS[dtype]
        values = np.frombuffer(data, bits, count, begin)
        if ((values & exponent) == exponent).any():
            return False
        begin += values.nbytes
    return True


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
    lead, tail = _identity(spec, base)
    return "sha256:" + hashlib.sha256(lead + hashlib.sha256(data).hexdigest().encode() + tail).hexdigest()


@lru_cache(maxsize=64)
def _identity(spec: AdapterSpec, base: str) -> tuple[bytes, bytes]:
    """The identity's JSON before and behind the hash of the weights, which sorts last."""
    told = {name: value for name, value in to_plain(canonical_spec(spec)).items() if LATER.get(name) != value}
    identity = {"format": "pefx-revision-1", "base": base, "spec": told, "weights": ""}
    text = canonical_json(identity, "adapter spec")
    return text[:-2], text[-2:]


def canonical_spec(spec: AdapterSpec) -> AdapterSpec:
    """`spec` with its targets in order: the order in which they are listed means nothing."""
    return replace(spec, alpha=float(spec.alpha), targets=tuple(sorted(spec.targets)))


def check_adapter(adapter: Adapter, spec: AdapterSpec, where: str) -> None:
    """PefxError unless `adapter` has the sites, factors, axes and rank that `spec` names.

    A target may be absent as a site (a base without dense layers has no dense site), but no site without its target.
    Axes are checked here, sizes against the base where the bank is: the catalog does not know the base's shape.
    """
    _check_factors(adapter, where)
    layout = [
        ((site, name), np.dtype(np.float32), tuple(np.shape(x)))
        for site, factors in adapter.items()
        for name, x in factors.items()
    ]
    if misfit := _misfit(tuple(layout), spec):
        raise PefxError(f"{where}: {misfit[0]}", misfit[1])


def _check_factors(adapter: Adapter, where: str) -> None:
    """A site without factors leaves no trace in a layout."""
    if not all(adapter.values()):
        site = next(site for site, factors in adapter.items() if not factors)
        raise PefxError(f"{where}: site '{site}' has no factors", "wrong_target")


def _misfit(layout: Layout, spec: AdapterSpec) -> tuple[str, str | None] | None:
    """What is wrong with an adapter of this layout, and its kind."""
    unknown = [target for target in spec.targets if target not in SITES]
    if unknown:
        return f"adapter target '{unknown[0]}' is not known; choose from {', '.join(SITES)}", "wrong_target"
    if not layout:
        return "the adapter has no tensors", None
    leaves, own = METHODS[spec.method].leaves, sizes(spec.rank, spec.units, spec.states)
    named_sites = list(dict.fromkeys(site for (site, _), _, _ in layout))
    for site in named_sites:
        factors = {name: shape for (other, name), _, shape in layout if other == site}
        if site not in spec.targets:
            return f"site '{site}' is no target of the adapter spec ({', '.join(spec.targets)})", "wrong_target"
        if set(factors) != set(leaves):
            needed = " and ".join(f"'{leaf}'" for leaf in leaves)
            return f"site '{site}' has factors {sorted(factors)}, needs {needed}", "wrong_target"
        for name, leaf in leaves.items():
            shape, split = factors[name], has_experts(site, FACTOR[leaf.side], spec)
            if len(shape) != 3 + split:
                needed = f"[L, {'E, ' if split else ''}{_named(leaf.rows)}, {_named(leaf.columns)}]"
                return f"tensor '{site}.{name}' has shape {list(shape)}, needs {needed}", "wrong_target"
            for size, named in zip(shape[-2:], (leaf.rows, leaf.columns), strict=True):
                if named in own and size != own[named]:
                    kind = "wrong_rank" if named == "rank" else "wrong_target"
                    return f"tensor '{site}.{name}' has {named} {size}, the spec says {own[named]}", kind
        layers = sorted({shape[0] for shape in factors.values()})
        if spec.tied == "all" and len(named_sites) > 1:
            return f"the adapter has sites {', '.join(named_sites)}; the spec ties all to one", "wrong_target"
        if spec.tied and layers != [1]:
            return f"site '{site}' has {layers[-1]} layers; the spec ties them to one", "wrong_target"
        if len(layers) > 1:
            return f"the factors of site '{site}' have {layers} layers, need the same", "wrong_target"
    return None


def _named(size: str) -> str:
    """A size of a leaf, as messages have it."""
    return {"one": "1", "rank": "R"}.get(size, "size" if size in FACTOR else size)
