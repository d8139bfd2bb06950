"""The TPU's form of paged attention. The contract is that of the portable form.

Positions of a tile's rows follow each other, as the host lays them out.
"""

import jax.numpy as jnp

from kernels.paged_attention import block_sizes
from kernels.paged_attention.block_sizes import LANES, SUBLANES
from kernels.paged_attention.pallas_backward import gradients
from kernels.paged_attention.pallas_forward import attend_tiles
from kernels.paged_attention.pallas_write import write_tiles
from kernels.paged_attention.xla import Latent, Layout, places


def unsupported(q, keys, at: Layout, latent: Latent | None = None) -> str | None:
    """Why these kernels cannot take these shapes, or None."""
    page, size = keys.shape[3:]
    if q.dtype not in (jnp.float32, jnp.bfloat16) or q.dtype != keys.dtype:
        return f"queries of {q.dtype} and keys of {keys.dtype} (both float32 or both bfloat16 are needed)"
    if at.chosen is not None:
        return "keys are chosen row by row, which only the portable form does"
    if size % LANES:
        return f"heads of {size} (a multiple of {LANES} is needed)"
    if latent is not None and latent.values % LANES:
        return f"latent values of {latent.values} (a multiple of {LANES} is needed)"
    if page % SUBLANES:
        return f"pages of {page} tokens (a multiple of {SUBLANES} is needed)"
    if at.rows.tiles and at.rows.tile % SUBLANES:
        return f"tiles of {at.rows.tile} rows (a multiple of {SUBLANES} is needed)"
    table = at.pages.shape[0] * -(-at.pages.shape[1] // LANES) * LANES
    if table > block_sizes.TABLE:
        return f"a padded table of {table} pages (at most {block_sizes.TABLE})"
    return None


def write(pools, new, layer, at: Layout):
    """Store each token's rows at its sequence's page; padding is dropped. `pools` are keys and values."""
    for rows, owners, tile in at.rows.parts():
        own = [x[rows] for x in new]
        if tile == 1:
            pools = _write_rows(pools, own, layer, [x[rows, None] for x in places(pools[0], at)])
        else:
            tiles = [x.reshape(-1, tile, *x.shape[1:]).transpose(0, 2, 1, 3) for x in own]
            pools = write_tiles(pools, tiles, layer, _tiles(at, rows, owners, tile))
    return pools


def _write_rows(pools, new, layer, places):
    """Single rows. Each head is an index too: the whole pool would otherwise be laid out anew, and back."""
    page, offset = places
    heads = jnp.arange(pools[0].shape[2], dtype=jnp.int32)[None]
    return [pool.at[layer, page, heads, offset].set(x, mode="drop") for pool, x in zip(pools, new, strict=True)]


def forward(q, pools, layer, at: Layout, latent: Latent | None = None):
    """Attention of every query to its sequence's pages. Returns `o [T, H, V]` and `lse [T, H]` (float32)."""
    found, group = [], q.shape[1] // pools[0].shape[2]
    for rows, owners, tile in at.rows.parts():
        part = block_sizes.queries_at_once(tile, group, q.shape[2] * q.dtype.itemsize)
        found.append(attend_tiles(q[rows], pools, layer, _tiles(at, rows, owners, tile, part), latent))
    o, lse = (jnp.concatenate(part) for part in zip(*found, strict=True))
    return o, lse


def _tiles(at: Layout, rows: slice, owners: slice, tile: int, part: int | None = None):
    """(sequence, position of the first row, end of the positions, pages) of tiles, or of parts of tiles."""
    part = part or tile
    sequence = jnp.maximum(jnp.repeat(at.rows.owner[owners], tile // part), 0)
    positions = at.positions[rows].reshape(-1, part)
    return sequence, positions[:, 0], jnp.max(positions, axis=1) + 1, at.pages


def backward(inputs, outputs, do, at: Layout, latent: Latent | None = None):
    """Gradients of `inputs` for sequences that lie whole in the batch, each in tiles of its own; no single rows."""
    o, lse = outputs
    drop = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1)
    return gradients(inputs, do, (lse, drop), at, latent)
