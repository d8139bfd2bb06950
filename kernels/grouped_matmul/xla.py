"""Portable grouped matmul: a loop over live tiles of at most 32 rows, each with its group's matrix.

`lax.ragged_dot` computes every group for every row on XLA:CPU; this computes each row once, and a dynamic trip count
costs nothing. Tiles past the live ones are left as zeros.
"""

import jax
import jax.numpy as jnp

from kernels.fresh import fresh
from kernels.tiles import TileMap


def _tile(x, i, size):
    return jax.lax.dynamic_slice_in_dim(x, i * size, size)


def forward(x, w, tiles: TileMap, offset, transpose: bool = False):
    """`x [NB, D]` by tiles with `w [G, D, F]` (or its transpose), float32."""
    width = w.shape[1] if transpose else w.shape[2]
    contraction = ((1,), (1,)) if transpose else ((1,), (0,))

    def one(i, y):
        weight = w[offset + tiles.group[i]]
        part = jax.lax.dot_general(
            _tile(x, i, tiles.tile), weight, (contraction, ((), ())), preferred_element_type=jnp.float32
        )
        return jax.lax.dynamic_update_slice_in_dim(y, part, i * tiles.tile, 0)

    start = fresh((x.shape[0], width), w[0, 0, :1].astype(jnp.float32))
    return jax.lax.fori_loop(0, tiles.live, one, start)


def weight_gradient(x, dy, tiles: TileMap, offset, groups: int):
    """`dw[g] = sum over g's tiles of x^T dy`, in order, float32. A loop of its own, dropped when nobody asks."""

    def one(i, total):
        part = jax.lax.dot_general(
            _tile(x, i, tiles.tile),
            _tile(dy, i, tiles.tile),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total.at[offset + tiles.group[i]].add(part)

    return jax.lax.fori_loop(0, tiles.live, one, jnp.zeros((groups, x.shape[1], dy.shape[1]), jnp.float32))
