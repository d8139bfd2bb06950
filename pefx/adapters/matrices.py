"""The matrices of a base that a site adapts, whatever segments its layers are in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pefx.adapters.sites import SITES, parameter, width_axis
from pefx.model import Base, runs


def held_by(base: Base, site: str) -> list[tuple[Any, str, slice]]:
    """Who holds a site's matrices, under which name, and which layers of an adapter they are for."""
    path = parameter(site)
    if path is None:
        return [(base, "embed" if base.unembed is None else "unembed", slice(0, 1))]
    kind, seen, found = SITES[site].kind, 0, []
    for segment, (run, dense) in zip(base.segments, runs(base.config), strict=True):
        if kind != "attention" and (kind == "dense") != dense:
            continue
        holder: Any = segment
        *parents, name = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        found.append((holder, name, slice(seen, seen + len(run))))
        seen += len(run)
    return found


def matrices(base: Base, site: str) -> Array:
    """`[L, (E,) out, in]`, in the base's precision."""
    parts = []
    for holder, name, _ in held_by(base, site):
        w = getattr(holder, name)[...]
        parts.append(w[None] if w.ndim == 2 else w)
    together = jnp.concatenate(parts)
    return jnp.swapaxes(together, -1, -2) if SITES[site].kind == "experts" else together


def matrix_axes(site: str) -> tuple[str | None, ...]:
    """The logical axes of `matrices`."""
    experts = ("experts",) if SITES[site].kind == "experts" else ()
    return ("layers", *experts, width_axis(site, "b"), width_axis(site, "a"))


def untied(base: Base) -> Base:
    """The base with an unembedding of its own, of the same numbers."""
    if base.unembed is not None:
        return base
    copy = jax.tree.map(lambda x: x, base)
    copy.unembed = nnx.data(jax.tree.map(lambda x: x, base.embed))
    return copy
