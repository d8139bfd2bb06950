"""New keys or values of tiles of rows into the pages of their sequence, in place, on a TPU.

The places of a grid of (tiles, parts of the heads) are taken in order. A page that a tile fills is written without
looking; one that it fills in part is read first, when all that is on its way has arrived. Writes are waited for when
their buffer is needed.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.paged_attention import block_sizes
from kernels.paged_attention.pallas_blocks import BUFFERS, Form, Plan, call, own_heads

NAMES = ("keys", "values")


def write_tiles(pools, new, layer, where):
    """Keys and values `[L, P, G, B, K]`, or keys alone, with as many of `new`, `[NT, G, tile, K]`, stored.

    `where` is as in `attend_tiles`. What has no page is dropped.
    """
    names = NAMES[: len(pools)]
    sequence, first, end, pages = where
    tiles, groups, tile, size = new[0].shape
    page, dtype = pools[0].shape[3], pools[0].dtype
    heads = block_sizes.heads_at_once(groups, tile, page, size * dtype.itemsize)
    form = Form(tiles, groups // heads, heads, 1, tile, page, size, dtype)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    plan = Plan(
        prefetched={"layer": jnp.reshape(layer, 1), "sequence": sequence, "first": first, "end": end, "pages": pages},
        operands={
            **{"new_" + name: (x, form.block(heads, tile, size)) for name, x in zip(names, new, strict=True)},
            **{name + "_before": (x, anywhere) for name, x in zip(names, pools, strict=True)},
        },
        results={
            name: (jax.ShapeDtypeStruct(x.shape, x.dtype), anywhere) for name, x in zip(names, pools, strict=True)
        },
        scratch={
            "page": pltpu.VMEM((BUFFERS, len(names), heads, form.keys, size), form.dtype),
            "under_way": pltpu.SMEM((BUFFERS,), jnp.int32),
            "sent": pltpu.SemaphoreType.DMA((BUFFERS,)),
        },
        updated={name + "_before": name for name in names},
    )
    bytes_moved = 2 * len(names) * new[0].size * jnp.dtype(form.dtype).itemsize
    cost = pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=bytes_moved)
    found = call(form, "paged_attention_write", _body, plan, cost)
    return [found[name] for name in names]


def _body(form: Form, ref) -> None:
    """All pages that one tile touches, of one part of the heads."""
    t, part = pl.program_id(0), pl.program_id(1)
    first, end, size = ref["first"][t], ref["end"][t], form.keys

    @pl.when((t == 0) & (part == 0))
    def _start():
        ref["turn"][0] = 0
        for slot in range(BUFFERS):
            ref["under_way"][slot] = 0

    def one(page, carry):
        number = ref["pages"][ref["sequence"][t], page]

        @pl.when(number >= 0)
        def _there():
            _one_page(form, ref, number, page * size)

        return carry

    # A tile of nobody has an end of 0.
    jax.lax.fori_loop(jnp.maximum(first, 0) // size, pl.cdiv(end, size), one, 0)

    @pl.when((t == form.tiles - 1) & (part == form.parts - 1))
    def _end():
        for slot in range(BUFFERS):
            _finish(form, ref, slot)


def _one_page(form: Form, ref, number, start) -> None:
    """Write what the tile has of the page `number`, which begins at position `start`."""
    t, slot = pl.program_id(0), ref["turn"][0]
    full = (start >= ref["first"][t]) & (start + form.keys <= ref["end"][t])
    _finish(form, ref, slot)

    @pl.when(~full)
    def _rest():
        _finish(form, ref, 1 - slot)
        copies = [
            pltpu.make_async_copy(page, buffer, ref["arrived"].at[slot])
            for buffer, page in _ends(form, ref, slot, number)
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()

    _blend(form, ref, slot, start)
    for buffer, page in _ends(form, ref, slot, number):
        pltpu.make_async_copy(buffer, page, ref["sent"].at[slot]).start()
    ref["under_way"][slot] = 1
    ref["turn"][0] = 1 - slot


def _ends(form: Form, ref, slot, number):
    """(buffer, page) of keys, and of values where there are any."""
    heads, layer = own_heads(form, pl.program_id(1)), ref["layer"][0]
    return [(ref["page"].at[slot, i], ref[name].at[layer, number, heads]) for i, name in enumerate(_names(ref))]


def _names(ref) -> list[str]:
    return [name for name in NAMES if name in ref]


def _finish(form: Form, ref, slot) -> None:
    """Wait for the writes from this buffer, if there are any."""

    @pl.when(ref["under_way"][slot] == 1)
    def _wait():
        for buffer, page in _ends(form, ref, slot, 0):  # all pages have the same size, which is what is waited for
            pltpu.make_async_copy(buffer, page, ref["sent"].at[slot]).wait()
        ref["under_way"][slot] = 0


def _blend(form: Form, ref, slot, start) -> None:
    """Put the tile's rows into the page that begins at position `start`."""
    t = pl.program_id(0)
    first, size = ref["first"][t], form.keys
    position = start + jax.lax.broadcasted_iota(jnp.int32, (size, form.size), 0)
    mine = (position >= first) & (position < ref["end"][t])
    long = size + form.rows
    turn = jax.lax.rem(first - start + long, long)

    def one(head, carry):
        for i, name in enumerate(_names(ref)):
            new = ref["new_" + name][0, head].astype(jnp.float32)
            new = jnp.concatenate([new, jnp.zeros((size, form.size), jnp.float32)])
            new = pltpu.roll(new, turn, 0)[:size].astype(form.dtype)
            ref["page"][slot, i, head] = jnp.where(mine, new, ref["page"][slot, i, head])
        return carry

    jax.lax.fori_loop(0, form.heads, one, 0)
