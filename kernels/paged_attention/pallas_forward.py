"""Attention of tiles of queries to the pages of their sequence, on a TPU.

The grid is (tiles, parts of the heads). Keys come in blocks of one fixed size in order from position 0 up to the last
one that the tile's queries see, so a row's bits are the same in any tile; a tile of nobody reads nothing.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.paged_attention import block_sizes
from kernels.paged_attention.block_sizes import LANES
from kernels.paged_attention.pallas_blocks import (
    BUFFERS,
    Form,
    Plan,
    block_of,
    call,
    chunks,
    dot,
    following,
    lanes,
    own_heads,
    padded,
    page_copies,
    query_positions,
    walk,
    zero_from,
)
from kernels.paged_attention.xla import MASKED, Latent, by_head, from_head


def attend_tiles(q, pools, layer, where, latent: Latent | None = None):
    """`o [rows, H, V]` and `lse [rows, H]` (float32) of `q [rows, H, K]`, rows in tiles; `pools` as in `forward`.

    `where` is (sequence, first, end `[tiles]`, pages `[S, PS]`): whose a tile is, the position of its first row, and
    the number of keys that its rows see, 0 for a tile of nobody. The positions of its rows follow each other.
    """
    sequence, first, end, pages = where
    tiles, heads, size = sequence.shape[0], q.shape[1], q.shape[2]
    groups, page = pools[0].shape[2:4]
    queries = q.shape[0] // tiles
    rows = padded(by_head(q.reshape(tiles, queries, heads, size), groups), 2)
    keys = block_sizes.keys_at_once(page)
    width = size * q.dtype.itemsize
    at_once = block_sizes.heads_at_once(groups, rows.shape[2], keys, width)
    form = Form(tiles, groups // at_once, at_once, heads // groups, rows.shape[2], keys, size, q.dtype, latent)
    counts = -(-end // keys)
    plan = Plan(
        prefetched={
            "layer": jnp.reshape(layer, 1),
            "sequence": sequence,
            "first": first,
            "end": end,
            "counts": counts,
            "follow": following(counts),
            "pages": pages,
        },
        operands={
            "q": (rows, form.block(form.heads, form.rows, size)),
            **{name: (pool, pl.BlockSpec(memory_space=pl.ANY)) for name, pool in zip(form.pools, pools, strict=True)},
        },
        results={
            "o": (
                jax.ShapeDtypeStruct((*rows.shape[:3], form.values), q.dtype),
                form.block(form.heads, form.rows, form.values),
            ),
            "lse": (
                jax.ShapeDtypeStruct((tiles, form.parts, form.heads, form.rows), jnp.float32),
                form.block(1, form.heads, form.rows),
            ),
        },
        scratch={
            **{name: pltpu.VMEM((BUFFERS, form.heads, keys, size), q.dtype) for name in form.pools.values()},
            "position": pltpu.VMEM((form.rows, LANES), jnp.int32),
            "top": pltpu.VMEM((form.heads, form.rows, LANES), jnp.float32),
            "total": pltpu.VMEM((form.heads, form.rows, LANES), jnp.float32),
            "out": pltpu.VMEM((form.heads, form.rows, form.values), jnp.float32),
        },
    )
    found = call(form, "paged_attention" + ("_rows" if queries == 1 else ""), _body, plan, _cost(form, pages, page))
    lse = found["lse"].reshape(tiles, groups, form.rows, 1)
    return from_head(found["o"], queries, heads), from_head(lse, queries, heads)[..., 0]


def _cost(form: Form, pages, page: int) -> pl.CostEstimate:
    """If every tile saw every page of its sequence."""
    keys, groups = pages.shape[1] * page, form.parts * form.heads
    pairs = form.tiles * groups * form.rows * keys
    numbers = len(form.pools) * keys * form.size + form.rows * (form.size + form.values)
    moved = form.tiles * groups * numbers * jnp.dtype(form.dtype).itemsize
    return pl.CostEstimate(flops=2 * pairs * (form.size + form.values), transcendentals=pairs, bytes_accessed=moved)


def _body(form: Form, ref) -> None:
    """One part of one tile."""
    t = pl.program_id(0)
    end = ref["end"][t]

    @pl.when(end > 0)
    def _start():
        ref["position"][...] = query_positions(form, ref["first"][t], 0)
        ref["top"][...] = jnp.full_like(ref["top"], MASKED)
        ref["total"][...] = jnp.zeros_like(ref["total"])
        ref["out"][...] = jnp.zeros_like(ref["out"])

    def compute(j, slot):
        @pl.when((j + 1) * form.keys > end)
        def _past_the_end():
            for name in form.pools.values():
                zero_from(ref[name], slot, end - j * form.keys)

        for head in range(form.heads):
            for m in chunks(form.rows, block_sizes.ROWS):
                _one_block(form, ref, (head, m), j, slot)

    walk(form, ref, lambda *block: _copies(form, ref, *block), compute)

    @pl.when(end > 0)
    def _finish():
        live = ref["position"][...] < end
        for head in range(form.heads):
            total = ref["total"][head]
            o = ref["out"][head] / lanes(total, form.values)
            ref["o"][0, head] = jnp.where(lanes(live, form.values), o, 0).astype(form.dtype)
            lse = jnp.where(live, ref["top"][head] + jnp.log(total), 0)
            ref["lse"][0, 0, head : head + 1] = lse.T[:1]

    @pl.when(end == 0)
    def _nobody():
        for name in ("o", "lse"):
            ref[name][...] = jnp.zeros_like(ref[name])


def _copies(form: Form, ref, tile, part, j, slot, do) -> None:
    """The pages of block j, as far as the tile sees."""
    page = ref["keys"].shape[3]
    per_block = form.keys // page
    count = jnp.minimum(per_block, pl.cdiv(ref["end"][tile] - j * form.keys, page))

    def number(i):
        return jnp.maximum(ref["pages"][ref["sequence"][tile], j * per_block + i], 0)

    ends = [(ref[pool].at[ref["layer"][0]], ref[name].at[slot]) for pool, name in form.pools.items()]
    page_copies((count, number), own_heads(form, part), ends, do)


def _one_block(form: Form, ref, at, j, slot) -> None:
    """Add block j of keys to the running softmax of some rows of a head, `at = (head, rows)`."""
    k, v = block_of(form, ref, slot, at[0])
    s = dot(ref["q"][0, *at], k, (1, 1)) * form.scale
    key = j * form.keys + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    s = jnp.where(key <= lanes(ref["position"][at[1]], form.keys), s, MASKED)
    top = ref["top"][at]
    new_top = jnp.maximum(top, jnp.max(s, axis=1, keepdims=True))
    p = jnp.exp(s - lanes(new_top, form.keys))
    keep = jnp.exp(top - new_top)
    ref["top"][at] = new_top
    ref["total"][at] = ref["total"][at] * keep + jnp.sum(p, axis=1, keepdims=True)
    ref["out"][at] = ref["out"][at] * lanes(keep, form.values) + dot(p.astype(v.dtype), v, (1, 0))
