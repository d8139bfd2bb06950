"""Portable choice of keys: index keys in blocks of one fixed size in order from position 0, scores of heads in order.

A score's bits depend on its query and its key alone, so that a row's choice is the same in any chunking.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kernels.paged_attention.xla import BLOCK_KEYS, Layout, block_of_pages, by_head, query_tile


def choose(
    q: Float[Array, "T H K"],
    weights: Float[Array, "T H"],
    keys: Float[Array, "L P 1 B K"],
    layer: Array,
    at: Layout,
    count: int,
) -> Bool[Array, "T C"]:
    """See `kernels.key_choice.api`."""
    found = []
    for rows, groups, tile in at.rows.parts():
        part = query_tile(tile, q.shape[1], 1)
        sequence = jnp.maximum(jnp.repeat(at.rows.owner[groups], tile // part), 0)
        found.append(_scores(q[rows], weights[rows], keys, layer, (at.positions[rows].reshape(-1, part), sequence, at)))
    scores = jnp.concatenate(found)
    best = jax.lax.top_k(scores, min(count, scores.shape[1]))[1]
    row = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros(scores.shape, bool).at[row, best].set(True)


def _scores(q, weights, keys, layer, where) -> Float[Array, "rows C"]:
    """Scores of every position of each query's sequence up to itself, minus infinity past it."""
    positions, sequence, at = where
    (tiles, width), heads, page = positions.shape, q.shape[1], keys.shape[3]
    per_block = max(1, BLOCK_KEYS // page)
    size = per_block * page
    pages = jnp.pad(at.pages, ((0, 0), (0, -at.pages.shape[1] % per_block)), constant_values=-1)[sequence]
    qt = by_head(q.reshape(tiles, width, heads, -1), 1)
    weights = weights.reshape(tiles, width, heads)
    length, offsets = at.lengths[sequence], jnp.arange(size, dtype=jnp.int32)

    def add_block(j, found):
        page = jax.lax.dynamic_slice_in_dim(pages, j * per_block, per_block, axis=1)
        position = j * size + offsets
        k = block_of_pages(keys, layer, page)
        # What lies past a sequence's end is another's or nobody's: not even a NaN of theirs may come through.
        k = jnp.where((position[None] < length[:, None])[:, None, :, None], k, 0)
        dots = jnp.einsum("ngmk,ngck->ngmc", qt, k, preferred_element_type=jnp.float32)[:, 0, : width * heads]
        dots = jnp.maximum(dots, 0).reshape(tiles, width, heads, size)
        total = dots[:, :, 0] * weights[:, :, 0, None]
        for head in range(1, heads):
            total = total + dots[:, :, head] * weights[:, :, head, None]
        total = jnp.where(position[None, None] <= positions[..., None], total, -jnp.inf)
        return jax.lax.dynamic_update_slice_in_dim(found, total, j * size, axis=2)

    start = jnp.full((tiles, width, pages.shape[1] * page), -jnp.inf, jnp.float32)
    found = jax.lax.fori_loop(0, -(-jnp.max(length) // size), add_block, start)
    return found.reshape(tiles * width, -1)
