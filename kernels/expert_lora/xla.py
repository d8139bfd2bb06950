"""Portable LoRA inside an expert layer: batched small matmuls over subtiles of one (expert, slot) each.

The buffer and its grouping are those of the expert matmul itself; nothing is sorted again.
"""

import jax.numpy as jnp

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


def forward(x, a, b, scales, tiles: TileMap, offset):
    """Deltas on the buffer (float32, zero where there is no adapter) and the shrunk, scaled subtiles `z`."""
    slot, expert = _indices(tiles)
    (a, ia), (b, ib) = _factor(a, offset, slot, expert), _factor(b, offset, slot, expert)
    xt = x.reshape(-1, tiles.subtile, x.shape[-1])
    # The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    z = jnp.einsum("tmd,trd->tmr", xt, a[ia].astype(x.dtype), preferred_element_type=jnp.float32)
    z = (z * jnp.where(slot < 0, 0.0, scales[jnp.maximum(slot, 0)])[:, None, None]).astype(x.dtype)
    y = jnp.einsum("tmr,trf->tmf", z, b[ib].astype(x.dtype), preferred_element_type=jnp.float32)
    return y.reshape(x.shape[0], -1), z


def backward(x, a, b, scales, tiles: TileMap, offset, z, dy):
    """Gradients of x, a and b."""
    slot, expert = _indices(tiles)
    (fa, ia), (fb, ib) = _factor(a, offset, slot, expert), _factor(b, offset, slot, expert)
    xt = x.reshape(-1, tiles.subtile, x.shape[-1])
    scale = jnp.where(slot < 0, 0.0, scales[jnp.maximum(slot, 0)])[:, None, None]
    dyt = dy.reshape(-1, tiles.subtile, dy.shape[-1]).astype(x.dtype)
    dz = jnp.einsum("tmf,trf->tmr", dyt, fb[ib].astype(x.dtype), preferred_element_type=jnp.float32)
    dz = (dz * scale).astype(x.dtype)
    dx = jnp.einsum("tmr,trd->tmd", dz, fa[ia].astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)
    da = jnp.einsum("tmr,tmd->trd", dz, xt, preferred_element_type=jnp.float32)
    db = jnp.einsum("tmr,tmf->trf", z, dyt, preferred_element_type=jnp.float32)
    da = sum_by_group(da, jnp.where(slot < 0, -1, ia), fa.shape[0]).reshape(a.shape)
    db = sum_by_group(db, jnp.where(slot < 0, -1, ib), fb.shape[0]).reshape(b.shape)
    return dx.reshape(x.shape), da.astype(a.dtype), db.astype(b.dtype)
