"""Gradients of attention of whole sequences, each in tiles of its own, on a TPU: one kernel for dq, one for dk and dv.

The grid is (tiles, parts of the heads). A tile of queries walks its sequence's keys from the first one up to itself; a
few tiles of keys walk their sequence's queries from themselves on. Each gradient is a float32 sum in that order.
"""

from dataclasses import replace

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
    column,
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
from kernels.paged_attention.xla import Latent, Layout, by_head, from_head

ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


def gradients(inputs, do, stats, at: Layout, latent: Latent | None = None):
    """The gradients of (q, k, v), or of (q, k) where keys are `latent`. `stats` is (lse, sum of do * o), float32."""
    q, k = inputs[:2]
    heads, groups, tile, size = q.shape[1], k.shape[1], at.rows.tile, q.shape[2]
    width = size * q.dtype.itemsize
    part = block_sizes.queries_at_once(tile, heads // groups, 2 * width)
    rows = [_by_part(x, part, groups) for x in (q, do)]
    tiles, m = rows[0].shape[0], rows[0].shape[2]
    at_once = block_sizes.heads_at_once(groups, m, block_sizes.keys_at_once(tile), 2 * width)
    form = Form(
        tiles, groups // at_once, at_once, heads // groups, m, block_sizes.keys_at_once(tile), size, q.dtype, latent
    )
    stats = [_by_part(x[..., None], part, groups).reshape(tiles, form.parts, form.heads, m) for x in stats]
    given = {
        "q": rows[0],
        "do": rows[1],
        "stats": jnp.concatenate(stats, axis=2),
        **{
            name: x.reshape(-1, tile, groups, size).transpose(0, 2, 1, 3)
            for name, x in zip(form.pools, inputs[1:], strict=True)
        },
    }
    live = at.rows.owner >= 0
    first = jnp.where(live, at.positions[::tile], 0)
    length = jnp.where(live, at.lengths[jnp.maximum(at.rows.owner, 0)], 0)
    dq = from_head(_of_queries(form, given, first, length), part, heads)
    return dq, *(x.transpose(0, 2, 1, 3).reshape(k.shape) for x in _of_keys(form, given, first, length))


def _by_part(x, part: int, groups: int):
    """Rows `[T, H, K]` as `[tiles, G, M, K]`, M a multiple of eight."""
    return padded(by_head(x.reshape(-1, part, *x.shape[1:]), groups), 2)


def _of_queries(form: Form, given, first, length):
    """dq `[tiles, G, M, K]`. Of each tile, `first` is the position of its first row, `length` that of its sequence."""
    tile = given["keys"].shape[2]
    split = form.tiles // first.shape[0]
    position = first[:, None] + jnp.arange(0, tile, tile // split, dtype=jnp.int32)[None]
    end = jnp.minimum(position + tile // split, length[:, None])
    end = jnp.where(position < length[:, None], end, 0).reshape(-1)
    start = jnp.arange(first.shape[0], dtype=jnp.int32) - first // tile
    counts = -(-end // form.keys)
    rows = form.block(form.heads, form.rows, form.size)
    outputs = form.block(form.heads, form.rows, form.values)
    plan = Plan(
        prefetched={
            "start": jnp.repeat(start, split),
            "first": position.reshape(-1),
            "end": end,
            "counts": counts,
            "follow": following(counts),
        },
        operands={
            "q": (given["q"], rows),
            "do": (given["do"], outputs),
            "stats": (given["stats"], form.block(1, 2 * form.heads, form.rows)),
            **{name: (given[name], ANYWHERE) for name in form.pools},
        },
        results={"dq": (jax.ShapeDtypeStruct(given["q"].shape, form.dtype), rows)},
        scratch={
            **dict.fromkeys(form.pools.values(), pltpu.VMEM((BUFFERS, form.heads, form.keys, form.size), form.dtype)),
            "position": pltpu.VMEM((form.rows, LANES), jnp.int32),
            "columns": pltpu.VMEM((2 * form.heads, form.rows, LANES), jnp.float32),
            "sum": pltpu.VMEM((form.heads, form.rows, form.size), jnp.float32),
        },
    )
    return call(form, "paged_attention_dq", _queries_body, plan, _cost(form, given, 3))["dq"]


def _queries_body(form: Form, ref) -> None:
    """dq of one part of one tile of queries."""
    t = pl.program_id(0)
    end = ref["end"][t]

    @pl.when(end > 0)
    def _start():
        # Rows past the end see nothing.
        position = query_positions(form, ref["first"][t], 0)
        ref["position"][...] = jnp.where(position < end, position, -1)
        for i in range(2 * form.heads):
            ref["columns"][i] = column(ref["stats"][0, 0, i : i + 1], form.rows)

    ref["sum"][...] = jnp.zeros_like(ref["sum"])

    def copies(tile, part, j, slot, do):
        size = ref["keys"].shape[2]
        before = j * (form.keys // size)
        count = jnp.minimum(form.keys // size, pl.cdiv(ref["end"][tile], size) - before)
        ends = [(ref[array], ref[name].at[slot]) for array, name in form.pools.items()]
        page_copies((count, lambda i: ref["start"][tile] + before + i), own_heads(form, part), ends, do)

    def compute(j, slot):
        @pl.when((j + 1) * form.keys > end)
        def _past_the_end():
            for name in form.pools.values():
                zero_from(ref[name], slot, end - j * form.keys)

        for head in range(form.heads):
            for m in chunks(form.rows, block_sizes.ROWS):
                _add_to_queries(form, ref, (head, m), j, slot)

    walk(form, ref, copies, compute)
    ref["dq"][0] = ref["sum"][...].astype(form.dtype)


def _add_to_queries(form: Form, ref, at, j, slot) -> None:
    """Block j's part of dq of some rows of a head, `at = (head, rows)`."""
    head, m = at
    k, v = block_of(form, ref, slot, head)
    s = dot(ref["q"][0, *at], k, (1, 1)) * form.scale
    key = j * form.keys + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    see = key <= lanes(ref["position"][m], form.keys)
    p = jnp.exp(s - lanes(ref["columns"][at], form.keys))
    dp = dot(ref["do"][0, *at], v, (1, 1)) - lanes(ref["columns"][form.heads + head, m], form.keys)
    ds = jnp.where(see, p * dp * form.scale, 0).astype(form.dtype)
    ref["sum"][at] += dot(ds, k, (1, 0))


def _of_keys(form: Form, given, first, length):
    """dk and dv `[NT, G, tile, K]`; `first` and `length` are as in `_of_queries`."""
    tiles, _, tile, _ = given["keys"].shape
    queries = tile * tiles // form.tiles
    together = max(1, block_sizes.KEYS_OF_GRADIENT // tile)
    # The first of every few tiles of a sequence takes the others with it.
    leads = (length > 0) & (first // tile % together == 0)
    held = jnp.where(leads, jnp.minimum(together, -(-(length - first) // tile)), 0)
    counts = jnp.where(leads, -(-length // queries) - first // queries, 0)
    block = replace(form, tiles=tiles, keys=together * tile)
    keys = pltpu.VMEM((1, form.heads, block.keys, form.size), form.dtype)
    plan = Plan(
        prefetched={"first": first, "length": length, "held": held, "counts": counts, "follow": following(counts)},
        operands={name: (given[name], ANYWHERE) for name in (*form.pools, "q", "do", "stats")},
        results={name: (jax.ShapeDtypeStruct(given["keys"].shape, form.dtype), ANYWHERE) for name in form.gradients},
        scratch={
            "q_block": pltpu.VMEM((BUFFERS, form.heads, form.rows, form.size), form.dtype),
            "do_block": pltpu.VMEM((BUFFERS, form.heads, form.rows, form.values), form.dtype),
            "stats_block": pltpu.VMEM((BUFFERS, 2 * form.heads, form.rows), jnp.float32),
            **dict.fromkeys((*form.pools.values(), *(name + "_sent" for name in form.gradients)), keys),
            **dict.fromkeys(
                (name + "_sum" for name in form.gradients), pltpu.VMEM((form.heads, block.keys, form.size), jnp.float32)
            ),
            "under_way": pltpu.SMEM((1,), jnp.int32),
            "loaded": pltpu.SemaphoreType.DMA,
            "sent": pltpu.SemaphoreType.DMA,
        },
    )
    found = call(block, "paged_attention_dkv", _keys_body, plan, _cost(form, given, 4))
    mine = (length > 0)[:, None, None, None]  # what is nobody's was not written
    return [jnp.where(mine, found[name], 0) for name in form.gradients]


def _keys_body(form: Form, ref) -> None:
    """dk and dv of one part of a few tiles of keys."""
    t, part = pl.program_id(0), pl.program_id(1)
    per_tile, tile = ref["q"].shape[0] // ref["first"].shape[0], ref["keys"].shape[2]

    @pl.when((t == 0) & (part == 0))
    def _none():
        ref["under_way"][0] = 0

    @pl.when(ref["counts"][t] > 0)
    def _start():
        _load(form, ref)
        for name in form.gradients:
            ref[name + "_sum"][...] = jnp.zeros_like(ref[name + "_sum"])

    def copies(tile, part, j, slot, do):
        there, heads = tile * per_tile + j, own_heads(form, part)
        do(ref["q"].at[there, heads], ref["q_block"].at[slot])
        do(ref["do"].at[there, heads], ref["do_block"].at[slot])
        do(ref["stats"].at[there, part], ref["stats_block"].at[slot])

    def compute(j, slot):
        position = query_positions(form, ref["first"][t] + j * (tile // per_tile), 1)
        # Queries past the end see nothing.
        position = jnp.where(position < ref["length"][t], position, -1)
        for head in range(form.heads):
            for m in chunks(form.rows, block_sizes.ROWS):
                _add_to_keys(form, ref, (head, m), position[:, m], slot)

    walk(form, ref, copies, compute)

    @pl.when(ref["counts"][t] > 0)
    def _finish():
        _wait_for_sent(form, ref)
        for name in form.gradients:
            ref[name + "_sent"][0] = ref[name + "_sum"][...].astype(form.dtype)
        _send(form, ref, t, ref["held"][t], lambda copy: copy.start())
        ref["under_way"][0] = ref["held"][t]

    @pl.when((t == form.tiles - 1) & (part == form.parts - 1))
    def _end():
        _wait_for_sent(form, ref)


def _load(form: Form, ref) -> None:
    """The keys, and values, of these tiles, zeros past the end."""
    t, part = pl.program_id(0), pl.program_id(1)
    ends = [(ref[array], ref[name].at[0]) for array, name in form.pools.items()]

    def copy(source, buffer):
        return pltpu.make_async_copy(source, buffer, ref["loaded"])

    pages = ref["held"][t], lambda i: t + i
    page_copies(pages, own_heads(form, part), ends, lambda source, buffer: copy(source, buffer).start())
    page_copies(pages, own_heads(form, part), ends, lambda source, buffer: copy(source, buffer).wait())

    @pl.when(ref["first"][t] + form.keys > ref["length"][t])
    def _past_the_end():
        for name in form.pools.values():
            zero_from(ref[name], 0, ref["length"][t] - ref["first"][t])


def _send(form: Form, ref, first, count, do) -> None:
    """`do` for the copies of dk and dv to `count` tiles from `first` on."""
    ends = [(ref[name], ref[name + "_sent"].at[0]) for name in form.gradients]
    part = own_heads(form, pl.program_id(1))
    page_copies((count, lambda i: first + i), part, ends, lambda a, b: do(pltpu.make_async_copy(b, a, ref["sent"])))


def _wait_for_sent(form: Form, ref) -> None:
    """Wait for what is on its way; all copies have the same size, which is what is waited for."""
    _send(form, ref, 0, ref["under_way"][0], lambda copy: copy.wait())


def _add_to_keys(form: Form, ref, at, position, slot) -> None:
    """The part of dk and dv of a head from some rows, `at = (head, rows)`: products with queries along the lanes."""
    head, m = at
    q, do, stats = ref["q_block"][slot, head, m], ref["do_block"][slot, head, m], ref["stats_block"]
    lse, drop = (stats[slot, i : i + 1, m] for i in (head, form.heads + head))
    k, v = block_of(form, ref, 0, head)
    s = dot(k, q, (1, 1)) * form.scale
    key = ref["first"][pl.program_id(0)] + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
    see = key <= position
    p = jnp.where(see, jnp.exp(s - lse), 0)
    dp = dot(v, do, (1, 1)) - drop
    ds = jnp.where(see, p * dp * form.scale, 0).astype(form.dtype)
    of_values = ref["dv_sum"].at[head] if form.latent is None else ref["dk_sum"].at[head, :, : form.values]
    of_values[...] += dot(p.astype(form.dtype), do, (1, 0))
    ref["dk_sum"][head] += dot(ds, q, (1, 0))


def _cost(form: Form, given, products: int) -> pl.CostEstimate:
    """If the whole batch were one sequence."""
    keys = given["keys"].size // form.size
    pairs = form.tiles * form.rows * keys // 2
    moved = form.tiles * keys * form.size * jnp.dtype(form.dtype).itemsize
    return pl.CostEstimate(flops=2 * products * pairs * form.size, transcendentals=pairs, bytes_accessed=moved)
