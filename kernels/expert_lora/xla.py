"""Portable expert projection with LoRA: the grouped matmul, and batched small matmuls over subtiles of one
(expert, slot) each. The buffer and its grouping are those of the expert matmul itself; nothing is sorted again.
"""

import jax.numpy as jnp

from kernels.factors import Factors
from kernels.grouped_matmul import xla as grouped
from kernels.tiles import TileMap, sum_by_group


def _indices(tiles: TileMap):
    """(slot or -1, expert) of each subtile; subgroup 0 is the bare base, subgroup s + 1 is slot s."""
    expert = jnp.repeat(tiles.group, tiles.tile // tiles.subtile)
    slot = jnp.where(expert < 0, -1, tiles.subgroup - 1)
    return jnp.maximum(slot, -1), jnp.maximum(expert, 0)


def _factor(factor, offset, slot, expert):
    """Fold an expert axis away: (`[G', R, D]`, index of each subtile)."""
    index = offset + jnp.maximum(slot, 0)
    if factor.ndim == 3:
        return factor, index
    groups, experts, *rest = factor.shape
    return factor.reshape(groups * experts, *rest), index * experts + expert


def _dot(equation, left, right):
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def forward(x, w, factors: Factors, tiles: TileMap, offset):
    """The projection of the buffer (in x's type) and the shrunk, scaled subtiles `z [NS, m, R]`."""
    y = grouped.forward(x, w, tiles, offset)
    slot, expert = _indices(tiles)
    (a, ia), (b, ib) = (_factor(f, factors.offset, slot, expert) for f in factors[:2])
    xt = x.reshape(-1, tiles.subtile, x.shape[-1])
    # The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    z = _dot("smd,srd->smr", xt, a[ia].astype(x.dtype)) * factors.scales[jnp.maximum(slot, 0)][:, None, None]
    z = z.astype(x.dtype)
    delta = _dot("smr,srf->smf", z, b[ib].astype(x.dtype)).reshape(y.shape)
    adapted = jnp.repeat(slot >= 0, tiles.subtile)[:, None]
    return jnp.where(adapted, y + delta, y).astype(x.dtype), z


def backward(x, w, factors: Factors, tiles: TileMap, offset, inner, dy):
    """Gradients of x, a and b. `inner` is what `forward` gave."""
    slot, expert = _indices(tiles)
    (a, ia), (b, ib) = (_factor(f, factors.offset, slot, expert) for f in factors[:2])
    xt = x.reshape(-1, tiles.subtile, x.shape[-1])
    dyt = dy.reshape(-1, tiles.subtile, dy.shape[-1])
    none = slot < 0
    dz = _dot("smf,srf->smr", dyt, b[ib].astype(x.dtype)) * factors.scales[jnp.maximum(slot, 0)][:, None, None]
    # Chosen, not multiplied by zero: what a slot holds must not reach a row that is not its own, not even as NaN.
    dz = jnp.where(none[:, None, None], 0.0, dz).astype(x.dtype)
    delta = jnp.where(none[:, None, None], 0.0, _dot("smr,srd->smd", dz, a[ia].astype(x.dtype)))
    dx = (grouped.forward(dy, w, tiles, offset, transpose=True) + delta.reshape(x.shape)).astype(x.dtype)
    da, db = _dot("smr,smd->srd", dz, xt), _dot("smr,smf->srf", inner, dyt)
    (da,) = sum_by_group([da], jnp.where(none, -1, ia), a.shape[0])
    (db,) = sum_by_group([db], jnp.where(none, -1, ib), b.shape[0])
    da, db = da.reshape(factors.a.shape), db.reshape(factors.b.shape)
    return dx, da.astype(factors.a.dtype), db.astype(factors.b.dtype)
