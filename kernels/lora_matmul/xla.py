"""Portable mixed LoRA product: rows grouped into tiles of one slot, then batched small matmuls over tiles.

Bits of a row do not depend on its tile's other rows: every product has 2 to 32 rows. Bits of a slot's gradient do not
depend on other slots: its tiles hold its own rows only and are summed in order.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.tiles import TileMap, sum_by_group, take_rows


def forward(x, a, b, scales, tiles: TileMap, offset) -> tuple[Float[Array, "T F"], Array]:
    """The product (float32) and the shrunk, scaled tiles `z [NT, m, R]` kept for the backward pass."""
    slot = jnp.maximum(tiles.group, 0)
    xt = take_rows(x, tiles.source).reshape(-1, tiles.tile, x.shape[-1])
    at, bt = a[offset + slot].astype(x.dtype), b[offset + slot].astype(x.dtype)
    # The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    z = jnp.einsum("tmd,trd->tmr", xt, at, preferred_element_type=jnp.float32)
    z = (z * scales[slot][:, None, None]).astype(x.dtype)
    y = jnp.einsum("tmr,trf->tmf", z, bt, preferred_element_type=jnp.float32)
    return take_rows(y.reshape(-1, y.shape[-1]), tiles.place), z


def backward(x, a, b, scales, tiles: TileMap, offset, z, dy):
    """Gradients of x, a and b."""
    slot = jnp.maximum(tiles.group, 0)
    at, bt = a[offset + slot].astype(x.dtype), b[offset + slot].astype(x.dtype)
    xt = take_rows(x, tiles.source).reshape(-1, tiles.tile, x.shape[-1])
    dyt = take_rows(dy, tiles.source).reshape(-1, tiles.tile, dy.shape[-1])
    dyt = dyt.astype(x.dtype)
    dz = jnp.einsum("tmf,trf->tmr", dyt, bt, preferred_element_type=jnp.float32)
    dz = (dz * scales[slot][:, None, None]).astype(x.dtype)
    dx = jnp.einsum("tmr,trd->tmd", dz, at, preferred_element_type=jnp.float32).astype(x.dtype)
    da = jnp.einsum("tmr,tmd->trd", dz, xt, preferred_element_type=jnp.float32)
    db = jnp.einsum("tmr,tmf->trf", z, dyt, preferred_element_type=jnp.float32)
    index = jnp.where(tiles.group < 0, -1, offset + slot)
    return (
        take_rows(dx.reshape(-1, dx.shape[-1]), tiles.place),
        sum_by_group(da, index, a.shape[0]).astype(a.dtype),
        sum_by_group(db, index, b.shape[0]).astype(b.dtype),
    )
