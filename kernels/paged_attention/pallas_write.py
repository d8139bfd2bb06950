"""New keys or values of tiles of rows into the pages of their sequence, in place, on a TPU.

The grid is one place a tile, in order. A page that a tile fills is written without looking; of one that it fills in part
the rest is read first, when all that is on its way has arrived. Writes are waited for when their buffer is needed.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.paged_attention.pallas_blocks import BUFFERS, Form, Plan, call


def write_tiles(pool, new, layer, where):
    """The pool `[L, P, G, B, K]` with `new [NT, G, tile, K]` stored; `where` is as for `attend_tiles`."""
    sequence, first, end, pages = where
    tiles, groups, tile, size = new.shape
    form = Form(tiles, 1, groups, 1, tile, pool.shape[3], size, pool.dtype)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    plan = Plan(
        prefetched={"layer": jnp.reshape(layer, 1), "sequence": sequence, "first": first, "end": end, "pages": pages},
        operands={"new": (new, form.block(groups, tile, size)), "before": (pool, anywhere)},
        results={"pool": (jax.ShapeDtypeStruct(pool.shape, pool.dtype), anywhere)},
        scratch={
            "page": pltpu.VMEM((BUFFERS, groups, form.keys, size), pool.dtype),
            "under_way": pltpu.SMEM((BUFFERS,), jnp.int32),
            "sent": pltpu.SemaphoreType.DMA((BUFFERS,)),
        },
        updated={"before": "pool"},
    )
    bytes_moved = 2 * new.size * pool.dtype.itemsize
    cost = pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=bytes_moved)
    return call(form, "paged_attention_write", _body, plan, cost)["pool"]


def _body(form: Form, ref) -> None:
    """All pages that one tile touches."""
    t = pl.program_id(0)
    first, end, size = ref["first"][t], ref["end"][t], form.keys

    @pl.when(t == 0)
    def _start():
        ref["turn"][0] = 0
        for slot in range(BUFFERS):
            ref["under_way"][slot] = 0

    def one(page, carry):
        slot = ref["turn"][0]
        number = jnp.maximum(ref["pages"][ref["sequence"][t], page], 0)
        there = ref["pool"].at[ref["layer"][0], number]
        start = page * size
        full = (start >= first) & (start + size <= end)
        _finish(ref, slot)

        @pl.when(~full)
        def _rest():
            _finish(ref, 1 - slot)
            copy = pltpu.make_async_copy(there, ref["page"].at[slot], ref["arrived"].at[slot])
            copy.start()
            copy.wait()

        _blend(form, ref, slot, start)
        pltpu.make_async_copy(ref["page"].at[slot], there, ref["sent"].at[slot]).start()
        ref["under_way"][slot] = 1
        ref["turn"][0] = 1 - slot
        return carry

    # A tile of nobody has an end of 0.
    jax.lax.fori_loop(jnp.maximum(first, 0) // size, pl.cdiv(end, size), one, 0)

    @pl.when(t == form.tiles - 1)
    def _end():
        for slot in range(BUFFERS):
            _finish(ref, slot)


def _finish(ref, slot) -> None:
    """Wait for the write from this buffer, if there is one."""

    @pl.when(ref["under_way"][slot] == 1)
    def _wait():
        some_page = ref["pool"].at[0, 0]  # all have the same size, which is what is waited for
        pltpu.make_async_copy(ref["page"].at[slot], some_page, ref["sent"].at[slot]).wait()
        ref["under_way"][slot] = 0


def _blend(form: Form, ref, slot, start) -> None:
    """Put the tile's rows into the page that begins at position `start`."""
    t = pl.program_id(0)
    first = ref["first"][t]
    size, rows = form.keys, form.rows
    position = start + jax.lax.broadcasted_iota(jnp.int32, (size, form.size), 0)
    mine = (position >= first) & (position < ref["end"][t])
    turned = jax.lax.rem(first - start + size + rows, size + rows)

    def one(head, carry):
        new = ref["new"][0, head].astype(jnp.float32)
        long = jnp.concatenate([new, jnp.zeros((size, form.size), jnp.float32)])
        shifted = pltpu.roll(long, turned, 0)[:size].astype(form.dtype)
        ref["page"][slot, head] = jnp.where(mine, shifted, ref["page"][slot, head])
        return carry

    jax.lax.fori_loop(0, form.heads, one, 0)
