"""Portable paged attention over tiles of queries, keys in blocks of one fixed size in order from position 0.

A row's bits depend on its own sequence alone: the blocks are the same whatever the chunking, trailing masked blocks
change nothing (the running maximum stays, the rescale is 1), and every product has between 2 and `MAX_ROWS` rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from kernels.rows import Rows

MASKED = -1e30  # finite, so that rows that see nothing stay finite
BLOCK_KEYS = 64
MAX_ROWS = 128  # products over one block of keys: from 2 to this many rows, each row gets the same bits
# Of a product `[M, C] x [C, N]`, columns past the last multiple of LANES may take other bits at few rows than at many:
# past 16, at M < 4 and M > 32 where they are 8 or fewer; past 64, with AVX-512, at M < 64. N is padded to a multiple.
LANES = 64


class Layout(NamedTuple):
    """What attention reads of a flat batch: `rows` are owned by sequences; see `pefx.batch.TokenBatch`."""

    positions: Int32[Array, "T"]
    rows: Rows
    pages: Int32[Array, "S PS"]
    lengths: Int32[Array, "S"]
    # The positions of its sequence that a row attends to, if not all up to itself; at least one of them.
    chosen: Bool[Array, "T C"] | None = None


class Latent(NamedTuple):
    """Keys that hold their values: the first `values` numbers of each. Scores are products times `scale`."""

    values: int
    scale: float


def measures(size: int, latent: Latent | None) -> tuple[int, float]:
    """The width of a value, and what scores are multiplied by, of keys of `size` numbers."""
    return (size, size**-0.5) if latent is None else latent


def write(pools, new, layer, at: Layout):
    """Store each token's rows at its sequence's page; padding is dropped.

    `pools` are keys and values `[L, P, G, B, K]` or keys alone, `new` those of the tokens, `[T, G, K]`.
    """
    page, offset = places(pools[0], at)
    return tuple(pool.at[layer, page, :, offset].set(x, mode="drop") for pool, x in zip(pools, new, strict=True))


def places(pool: Float[Array, "L P G B K"], at: Layout) -> tuple[Int32[Array, "T"], Int32[Array, "T"]]:
    """The page of each token's row and its place in it; padding has a page that does not exist."""
    size = pool.shape[3]
    page = at.pages[jnp.maximum(at.rows.of_each(), 0), jnp.maximum(at.positions, 0) // size]
    return jnp.where((at.positions < 0) | (page < 0), pool.shape[1], page), at.positions % size


def by_head(x: Float[Array, "NT Q H K"], groups: int) -> Float[Array, "NT G M K"]:
    """Queries of one key head side by side, `M = H / G * Q`, at least 2 (a single row would take other bits)."""
    tiles, q, heads, size = x.shape
    x = x.reshape(tiles, q, groups, heads // groups, size).transpose(0, 2, 1, 3, 4).reshape(tiles, groups, -1, size)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) if x.shape[2] == 1 else x


def from_head(x: Float[Array, "NT G M K"], q: int, heads: int) -> Float[Array, "rows H K"]:
    tiles, groups, _, size = x.shape
    x = x[:, :, : q * heads // groups].reshape(tiles, groups, q, heads // groups, size)
    return x.transpose(0, 2, 1, 3, 4).reshape(tiles * q, heads, size)


def head_rows(x: Array, heads: int, groups: int) -> Array:
    """A per-query value `[NT, Q]` for each row of `by_head`: `[NT, 1, M]`."""
    x = jnp.repeat(x, heads // groups, axis=1)[:, None]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=-1) if x.shape[2] == 1 else x


def _of_heads(chosen: Bool[Array, "NT Q C"], heads: int, groups: int) -> Bool[Array, "NT 1 M C"]:
    """`chosen` for each row of `by_head`."""
    x = jnp.repeat(chosen, heads // groups, axis=1)[:, None]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) if x.shape[2] == 1 else x


def query_tile(tile: int, heads: int, groups: int) -> int:
    """Queries that go through one product: as many of a tile as keep their heads within `MAX_ROWS`."""
    while tile > 1 and tile * (heads // groups) > MAX_ROWS:
        tile //= 2
    return tile


def forward(q, pools, layer, at: Layout, latent: Latent | None = None):
    """Attention of every query to its sequence's pages. Returns `o [T, H, V]` and `lse [T, H]` (float32).

    `pools` are keys and values, or keys alone where they are `latent`.
    """
    found = []
    for rows, groups, tile in at.rows.parts():
        part = query_tile(tile, q.shape[1], pools[0].shape[2])
        sequence = jnp.repeat(at.rows.owner[groups], tile // part)
        own = None if at.chosen is None else at.chosen[rows].reshape(-1, part, at.chosen.shape[1])
        where = at.positions[rows].reshape(-1, part), sequence, at._replace(chosen=own)
        found.append(_tiles(q[rows], pools, layer, where, latent))
    o, lse = (jnp.concatenate(part) for part in zip(*found, strict=True))
    return o, lse


def _tiles(q, pools, layer, where, latent: Latent | None):
    """`forward` for query tiles of one width; `where` is their positions `[NT, Q]`, their sequences, and the layout."""
    positions, sequence, at = where
    heads, groups, size = q.shape[1], *pools[0].shape[2:4]
    values, scale = measures(q.shape[-1], latent)
    tiles, width = positions.shape
    sequence = jnp.maximum(sequence, 0)
    per_block = max(1, BLOCK_KEYS // size)
    pages = jnp.pad(at.pages, ((0, 0), (0, -at.pages.shape[1] % per_block)), constant_values=-1)[sequence]
    qt = by_head(q.reshape(tiles, width, heads, -1), groups)
    last = head_rows(positions, heads, groups)[..., None]
    length = at.lengths[sequence]
    offsets = jnp.arange(per_block * size, dtype=jnp.int32)

    def add_block(j, carry):
        top, total, out = carry
        page = jax.lax.dynamic_slice_in_dim(pages, j * per_block, per_block, axis=1)
        block = [block_of_pages(pool, layer, page) for pool in pools]
        position = j * per_block * size + offsets
        # What lies past a sequence's end is another's or nobody's: not even a NaN of theirs may come through.
        mine = (position[None] < length[:, None])[:, None, :, None]
        block = [jnp.where(mine, x, 0) for x in block]
        k, v = block[0], block[-1][..., :values]
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, -v.shape[-1] % LANES)))
        s = jnp.einsum("ngmk,ngck->ngmc", qt, k, preferred_element_type=jnp.float32) * scale
        see = position[None, None, None] <= last
        if at.chosen is not None:
            see &= _of_heads(jax.lax.dynamic_slice_in_dim(at.chosen, position[0], position.shape[0], 2), heads, groups)
        s = jnp.where(see, s, MASKED)
        new_top = jnp.maximum(top, jnp.max(s, axis=-1))
        p = jnp.exp(s - new_top[..., None])
        keep = jnp.exp(top - new_top)
        pv = jnp.einsum("ngmc,ngck->ngmk", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return new_top, total * keep + jnp.sum(p, axis=-1), out * keep[..., None] + pv

    blocks = -(-jnp.max(length) // (per_block * size))
    rows = qt.shape[:3]
    start = (jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((*rows, values + -values % LANES)))
    top, total, out = jax.lax.fori_loop(0, blocks, add_block, start)
    out = from_head((out[..., :values] / total[..., None]).astype(q.dtype), width, heads)
    out = jnp.where((positions >= 0).reshape(-1, 1, 1), out, 0)
    return out, from_head((top + jnp.log(total))[..., None], width, heads)[..., 0]


def block_of_pages(pool: Float[Array, "L P G B K"], layer, page: Int32[Array, "NT N"]) -> Float[Array, "NT G C K"]:
    """Pages that follow each other as one block of keys, `C = N * B`; each head's are picked in their place."""
    groups, _, width = pool.shape[2:]
    heads = jnp.arange(groups, dtype=jnp.int32)[None, :, None]
    return pool[layer, jnp.maximum(page, 0)[:, None], heads].reshape(page.shape[0], groups, -1, width)


def backward(inputs, outputs, do, at: Layout, latent: Latent | None = None):
    """Gradients of q, k and v for sequences that lie whole in the batch, each in tiles of its own.

    `inputs` are (q, k, v), or (q, k) where keys are `latent`; `outputs` are what `forward` gave.

    Pair i holds query tile n + i and key tile n of one sequence, i ascending: each gradient is a sum in a fixed order
    over its own sequence.
    """
    (q, k), (o, lse) = inputs[:2], outputs
    heads, groups, tile = q.shape[1], k.shape[1], at.rows.tile
    values, scale = measures(q.shape[-1], latent)

    def tiled(x: Array) -> Array:
        return x.reshape(-1, tile, *x.shape[1:])

    drop = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1)
    qb, dob = by_head(tiled(q), groups), by_head(tiled(do), groups)
    kb, vb = (tiled(x).transpose(0, 2, 1, 3)[..., :width] for x, width in ((k, None), (inputs[-1], values)))
    stats = by_head(tiled(jnp.stack([lse, drop], axis=-1)), groups)
    position, sequence = tiled(at.positions), at.rows.owner
    q_position = head_rows(position, heads, groups)[..., None]
    k_position = jnp.where(position < 0, jnp.iinfo(jnp.int32).max, position)[:, None, None]
    count = position.shape[0]
    index = jnp.arange(count, dtype=jnp.int32)

    def pair(i, carry):
        dq, dk, dv = carry
        there = jnp.minimum(index + i, count - 1)
        same = ((index + i < count) & (sequence[there] == sequence))[:, None, None, None]
        see = (q_position[there] >= k_position) & same
        if at.chosen is not None:
            own = jnp.take_along_axis(tiled(at.chosen)[there], jnp.maximum(position, 0)[:, None], axis=2)
            see &= _of_heads(own, heads, groups)
        # Another sequence's numbers are left out, not multiplied by zero: not even a NaN of theirs may come through.
        qi, doi, stat = jnp.where(same, qb[there], 0), jnp.where(same, dob[there], 0), stats[there]
        s = jnp.einsum("ngmk,ngck->ngmc", qi, kb, preferred_element_type=jnp.float32) * scale
        p = jnp.where(see, jnp.exp(s - stat[..., :1]), 0.0)
        dp = jnp.einsum("ngmk,ngck->ngmc", doi, vb, preferred_element_type=jnp.float32)
        ds = jnp.where(see, p * (dp - stat[..., 1:]) * scale, 0.0).astype(q.dtype)
        dv = dv + jnp.einsum("ngmc,ngmk->ngck", p.astype(q.dtype), doi, preferred_element_type=jnp.float32)
        dk = dk + jnp.einsum("ngmc,ngmk->ngck", ds, qi, preferred_element_type=jnp.float32)
        part = jnp.einsum("ngmc,ngck->ngmk", ds, kb, preferred_element_type=jnp.float32)
        back = index - i
        part = jnp.where(same, part, 0.0)
        part = jnp.where((back >= 0)[:, None, None, None], part[jnp.maximum(back, 0)], 0.0)
        return dq + part, dk, dv

    start = (jnp.zeros(qb.shape), jnp.zeros(kb.shape), jnp.zeros(vb.shape))
    dq, dk, dv = jax.lax.fori_loop(0, -(-jnp.max(at.lengths) // tile), pair, start)
    dk, dv = (x.transpose(0, 2, 1, 3).reshape(*k.shape[:2], -1) for x in (dk, dv))
    found = (dk, dv) if latent is None else (jnp.concatenate([dk[..., :values] + dv, dk[..., values:]], axis=-1),)
    return tuple(g.astype(q.dtype) for g in (from_head(dq, tile, heads), *found))
