"""An adapter folded into a base's weights: one base more, as fast as the bare one, instead of a slot of a bank.

Weights are `W + s (A B)` in the layout of each parameter, summed in float32 and rounded to the base's precision, then
times the gains where a method has them; taking an adapter of LoRA out again gives the weights back but for the
rounding.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pefx.adapters.applied import applied
from pefx.adapters.matrices import held_by
from pefx.adapters.methods.recipe import check_exchangeable, check_no_memory
from pefx.adapters.methods.table import Adapter, check_shapes, scale
from pefx.adapters.sites import SITES
from pefx.compiler import jit
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.model import Base


def merge(base: Base, adapter: Adapter, spec: AdapterSpec, digest: str = "") -> Base:
    """The base with the adapter in its weights, `gains (W + s (A B))`; `base` itself stays as it is. With the base's
    `digest` by its kept directions.

    Raises PefxError (kind "bad_adapter") where a factor does not fit, or where the unembedding is the embedding too.
    """
    return _with(base, applied(base, _fitting(base, adapter, spec), spec, digest), scale(spec))


def unmerge(base: Base, adapter: Adapter, spec: AdapterSpec) -> Base:
    """The base without an adapter that was merged into it. Raises as `merge` does, and where the adapter is no pair of
    factors: what those of other methods are follows from the base before.
    """
    check_exchangeable(spec)
    return _with(base, _fitting(base, adapter, spec), -scale(spec))


def _with(base: Base, adapter: Adapter, factor: float) -> Base:
    found = jax.tree.map(lambda x: x, base)
    for site, pair in adapter.items():
        for holder, name, layers in held_by(found, site):
            own = {leaf: x[layers] for leaf, x in pair.items()}
            _add(holder, name, own, factor, SITES[site].kind == "experts")
    return found


def _fitting(base: Base, adapter: Adapter, spec: AdapterSpec) -> Adapter:
    check_no_memory(spec)
    shapes = {site: {name: x.shape for name, x in pair.items()} for site, pair in adapter.items()}
    check_shapes(base.config, spec, shapes)
    if "unembed" in adapter and base.unembed is None:
        raise PefxError("the unembedding is tied to the embedding: an adapter of it cannot be merged", "bad_adapter")
    return adapter


def _add(holder: Any, name: str, pair: dict[str, np.ndarray], factor: float, inward: bool) -> None:
    """Put the sum in place of a parameter; `inward` are experts' matrices, `[in, out]`. The unembedding is no layer."""
    variable = getattr(holder, name)
    w = variable[...]
    pair = pair if w.ndim > 2 else {leaf: x[0] for leaf, x in pair.items()}
    # Turned around outside of the sum: on some processors a product has other last bits the other way around.
    held = jnp.swapaxes(w, -1, -2) if inward else w
    together = _layer_by_layer if w.ndim > 2 else _added
    new = _summed(together)(held, *(_long(pair[x], w.shape[:-2]) for x in ("a", "b")), np.float32(factor))
    if "gains" in pair:
        new = (new.astype(jnp.float32) * np.swapaxes(pair["gains"], -1, -2)).astype(w.dtype)
    variable[...] = jnp.swapaxes(new, -1, -2) if inward else new


def sum_of(w: np.ndarray, a: np.ndarray, b: np.ndarray, factor: float) -> Array:
    """A matrix `[out, in]` with `factor` times the product of a `[R, in]` and b `[R, out]`, in its type.

    A row has the same bits among any others (two rows at least).
    """
    return _summed(_added)(jnp.asarray(w), _long(a, ()), _long(b, ()), np.float32(factor))


def _long(factor: np.ndarray, rest: tuple[int, ...]) -> np.ndarray:
    """A factor `[..., R, width]` as `[*rest, width, R]`, float32, repeated for each expert where they share it.

    In memory, before the product: with the ranks first, some processors round a row by how many there are.
    """
    shared = factor[:, None] if 2 < factor.ndim < len(rest) + 2 else factor
    together = np.broadcast_to(shared, (*rest, *shared.shape[-2:]))
    return np.ascontiguousarray(np.swapaxes(together, -1, -2), np.float32)


def _added(
    w: Float[Array, "*rest o i"],
    a: Float[np.ndarray | Array, "*rest i R"],
    b: Float[np.ndarray | Array, "*rest o R"],
    factor: Array,
) -> Float[Array, "*rest o i"]:
    delta = jnp.einsum("...ir,...or->...oi", a, b)
    return (w.astype(jnp.float32) + delta * factor).astype(w.dtype)


def _layer_by_layer(w: Array, a: Array, b: Array, factor: Array) -> Array:
    """A layer at a time: a sum in float32 of all of them would take as much memory again, or twice as much."""
    return jax.lax.map(lambda x: _added(x[0], x[1], x[2], factor), (w, a, b))


@cache
def _summed(together: Callable[..., Array]) -> Callable[..., Array]:
    return jit(together)
