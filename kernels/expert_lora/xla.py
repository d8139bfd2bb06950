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
    """Fold the expert axis away: (`[G * E, R, D]`, index of each subtile)."""
    index = (offset + jnp.maximum(slot, 0)) * factor.shape[1] + expert
    return factor.reshape(-1, *factor.shape[2:]), index


def _dot(equation, left, right):
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _scale(factors: Factors, slot):
    return factors.scales[jnp.maximum(slot, 0)][:, None, None]


def forward(x, z, w, factors: Factors, tiles: TileMap, offset):
    """The projection of the buffer and its shrunk, scaled rows `z [NB, R]`, in x's type.

    The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    """
    y = grouped.forward(x, w, tiles, offset)
    slot, expert = _indices(tiles)
    if factors.a is not None:
        a, ia = _factor(factors.a, factors.offset, slot, expert)
        z = _dot("smd,srd->smr", _subtiles(x, tiles), a[ia].astype(x.dtype)) * _scale(factors, slot)
        z = _rows(jnp.where(slot[:, None, None] < 0, 0.0, z).astype(x.dtype))
    if factors.b is not None:
        b, ib = _factor(factors.b, factors.offset, slot, expert)
        delta = _rows(_dot("smr,srf->smf", _subtiles(z, tiles), b[ib].astype(x.dtype)))
        y = jnp.where(jnp.repeat(slot >= 0, tiles.subtile)[:, None], y + delta, y)
    return y.astype(x.dtype), z


def _subtiles(x, tiles: TileMap):
    return x.reshape(-1, tiles.subtile, x.shape[-1])


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def backward(x, w, factors: Factors, tiles: TileMap, offset, z, cotangents):
    """Gradients of x, z, a and b, None for what was not given. `z` is what `forward` returned."""
    slot, expert = _indices(tiles)
    dy, dz = cotangents
    dyt, none = _subtiles(dy, tiles), (slot < 0)[:, None, None]
    dx, da, db = grouped.forward(dy, w, tiles, offset, transpose=True), None, None
    if factors.b is not None:
        b, ib = _factor(factors.b, factors.offset, slot, expert)
        # Chosen, not multiplied by zero: what a slot holds must not reach a row that is not its own, not even as NaN.
        dz = _rows(jnp.where(none, 0.0, _dot("smf,srf->smr", dyt, b[ib].astype(x.dtype))))
        (db,) = sum_by_group([_dot("smr,smf->srf", _subtiles(z, tiles), dyt)], _found(ib, slot), b.shape[0])
        db = db.reshape(factors.b.shape).astype(factors.b.dtype)
    if factors.a is None:
        return dx.astype(x.dtype), dz.astype(x.dtype), None, db
    a, ia = _factor(factors.a, factors.offset, slot, expert)
    dz = jnp.where(none, 0.0, _subtiles(dz.astype(jnp.float32), tiles) * _scale(factors, slot)).astype(x.dtype)
    dx = dx + _rows(jnp.where(none, 0.0, _dot("smr,srd->smd", dz, a[ia].astype(x.dtype))))
    (da,) = sum_by_group([_dot("smr,smd->srd", dz, _subtiles(x, tiles))], _found(ia, slot), a.shape[0])
    return dx.astype(x.dtype), None, da.reshape(factors.a.shape).astype(factors.a.dtype), db


def _found(index, slot):
    return jnp.where(slot < 0, -1, index)
