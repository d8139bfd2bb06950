"""An adapter folded into a base's weights: one base more, as fast as the bare one, instead of a slot of a bank.

Weights are `W + s (A B)` in the layout of each parameter, summed in float32 and rounded to the base's precision; taking
the adapter out again gives the weights back but for that rounding.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pefx.adapters.methods import Adapter, scale
from pefx.adapters.sites import SITES, check_shapes, parameter
from pefx.compiler import jit
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.model import Base, runs


def merge(base: Base, adapter: Adapter, spec: AdapterSpec) -> Base:
    """The base with the adapter in its weights; `base` itself stays as it is.

    Raises PefxError (kind "bad_adapter") where a factor does not fit, or where the unembedding is the embedding too.
    """
    return _with(base, adapter, spec, scale(spec))


def unmerge(base: Base, adapter: Adapter, spec: AdapterSpec) -> Base:
    """The base without an adapter that was merged into it. Raises as `merge` does."""
    return _with(base, adapter, spec, -scale(spec))


def _with(base: Base, adapter: Adapter, spec: AdapterSpec, factor: float) -> Base:
    _check(base, adapter, spec)
    found = jax.tree.map(lambda x: x, base)
    for site, pair in adapter.items():
        path = parameter(site)
        if path is None:
            _add(found, "unembed", _first(pair), factor, False)
            continue
        for segment, layers in zip(found.segments, _rows(base, site), strict=True):
            if layers is not None:
                own = {name: x[layers] for name, x in pair.items()}
                _add(segment, path, own, factor, SITES[site].kind == "experts")
    return found


def _check(base: Base, adapter: Adapter, spec: AdapterSpec) -> None:
    shapes = {site: {name: x.shape for name, x in pair.items()} for site, pair in adapter.items()}
    check_shapes(base.config, spec, shapes)
    if "unembed" in adapter and base.unembed is None:
        raise PefxError("the unembedding is tied to the embedding: an adapter of it cannot be merged", "bad_adapter")


def _rows(base: Base, site: str) -> list[slice | None]:
    """Of each segment, which layers of an adapter's site are its; None where it has no such site."""
    kind, seen, found = SITES[site].kind, 0, []
    for run, dense in runs(base.config):
        if kind == "attention":
            found.append(slice(run.start, run.stop))
        elif (kind == "dense") == dense:
            found.append(slice(seen, seen + len(run)))
            seen += len(run)
        else:
            found.append(None)
    return found


def _first(pair: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The unembedding's factors: it is no layer."""
    return {name: x[0] for name, x in pair.items()}


def _add(holder: Any, path: str, pair: dict[str, np.ndarray], factor: float, inward: bool) -> None:
    """Put the sum in place of a parameter; `inward` are experts' matrices, `[in, out]`."""
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    variable = getattr(holder, name)
    if inward:
        variable[...] = _one_by_one(np.asarray(variable[...]), pair, factor)
        return
    a, b = (jnp.asarray(pair[x], jnp.float32) for x in ("a", "b"))
    together = _layer_by_layer if variable[...].ndim > 2 else _added
    variable[...] = _summed(together)(variable[...], a, b, np.float32(factor))


def _one_by_one(w: np.ndarray, pair: dict[str, np.ndarray], factor: float) -> np.ndarray:
    """Experts' matrices `[L, E, in, out]`, each by `sum_of` as it is stored: on some processors a product has other
    bits the other way around, or among others.
    """
    out = np.empty_like(w)
    for layer, expert in np.ndindex(w.shape[:2]):
        a, b = (x[layer, expert] if x.ndim == 4 else x[layer] for x in (np.asarray(pair["a"]), np.asarray(pair["b"])))
        held = np.ascontiguousarray(w[layer, expert].T)
        out[layer, expert] = np.asarray(sum_of(held, a.astype(np.float32), b.astype(np.float32), factor)).T
    return out


def sum_of(w: np.ndarray, a: np.ndarray, b: np.ndarray, factor: float) -> Array:
    """A matrix `[out, in]` with `factor` times the product of a `[R, in]` and b `[R, out]` (float32), in its type."""
    return _summed(_added)(jnp.asarray(w), jnp.asarray(a), jnp.asarray(b), np.float32(factor))


def _added(
    w: Float[Array, "*rest m n"], a: Float[Array, "*ra R i"], b: Float[Array, "*rb R o"], factor: Array
) -> Float[Array, "*rest m n"]:
    delta = jnp.einsum("...ri,...ro->...oi", a, b)
    return (w.astype(jnp.float32) + delta * factor).astype(w.dtype)


def _layer_by_layer(w: Array, a: Array, b: Array, factor: Array) -> Array:
    """A layer at a time: a sum in float32 of all of them would take as much memory again, or twice as much."""
    return jax.lax.map(lambda x: _added(x[0], x[1], x[2], factor), (w, a, b))


@cache
def _summed(together: Callable[..., Array]) -> Callable[..., Array]:
    return jit(together)
