"""Gradients of the mixed LoRA product of tiles of rows with one slot each, on a TPU.

The grid is (tiles, blocks), tiles sorted by their slot: first dy and b block by block into dz, with db on the way, then
a and x block by block into dx and da. A slot's sums stay in VMEM from its first tile to its last, added in order, and
are then copied to their place in the bank's gradient, which holds zeros for all other slots.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lora_matmul.pallas_blocks import CHUNK, Axis, Form, Operands, Plan, call, chunks, dot


def run_backward(form: Form, at, scale, given: Operands, onto=None):
    """(dx, da, dz, db): what there is of them, from x, a and dz, or z, b and dy, or all but dz.

    All rows are these tiles' rows. `at [groups]` is each tile's row of the bank, -1 for none. Rows without a slot get
    zeros. da and db are float32, of the whole bank, added in order to those of `onto` where it is given. dz is before
    the scale, float32 where it is the result.
    """
    order = jnp.argsort(jnp.where(at < 0, jnp.iinfo(jnp.int32).max, at), stable=True).astype(jnp.int32)
    at, scale = at[order], scale[order]
    # Tiles without a slot come last: nothing is read for them.
    last = jnp.maximum(jnp.sum(at >= 0, dtype=jnp.int32) - 1, 0)
    source = order[jnp.minimum(jnp.arange(form.groups, dtype=jnp.int32), last)]
    sums = [
        None if factor is None else jnp.zeros(factor.shape, jnp.float32) if before is None else before
        for factor, before in zip((given.a, given.b), onto or (None, None), strict=True)
    ]
    operands, results = _blocks(form, given, sums)
    scratch = {"partial": pltpu.VMEM((form.rank, form.tile), jnp.float32)}
    if given.x is not None:
        scratch["dz_scaled"] = pltpu.VMEM((form.rank, form.tile), form.dtype)
    for name, axis in (("da", form.inner), ("db", form.outer)):
        if axis.blocks:
            scratch[name + "_sums"] = pltpu.VMEM((axis.blocks, form.rank, axis.width), jnp.float32)
            scratch[name + "_sent"] = pltpu.SemaphoreType.DMA((axis.blocks,))
    updated = {"da_before": "da", "db_before": "db"}
    plan = Plan((at, scale, order, source), operands, results, scratch, updated)
    cost = form.cost(2, given.x, given.x, given.a, given.b, given.dy, *sums)
    found = call(form, f"lora_run{form.part}_backward", partial(_body, onto is not None), plan, cost)
    return tuple(found.get(name) for name in ("dx", "da", "dz", "db"))


def _blocks(form, given, sums):
    """Operands and results with their blocks.

    Prefetched are, in the order of the grid: a tile's `at`, its scale, its number, and that of the tile to read from:
    its own, or the last one's that has a slot.
    """

    def inner(t, j, at, _scale, _order, source):
        block = jnp.maximum(j - form.steps + form.inner.blocks, 0)
        return source[t], jnp.where(at[t] < 0, form.inner.blocks - 1, block)

    def outer(t, j, at, _scale, _order, source):
        block = jnp.minimum(j, form.outer.blocks - 1)
        return source[t], jnp.where(at[t] < 0, form.outer.blocks - 1, block)

    def written(t, j, _at, _scale, order, _source):
        return order[t], jnp.maximum(j - form.steps + form.inner.blocks, 0)

    def factor(axis, position):
        def place(t, j, at, *prefetched):
            return jnp.maximum(at[jnp.where(at[t] < 0, 0, t)], 0), 0, position(t, j, at, *prefetched)[1]

        return pl.BlockSpec((1, form.rank, axis.width), place)

    rank, anywhere = Axis(form.rank, 1), pl.BlockSpec(memory_space=pl.ANY)
    operands = {
        "x": (given.x, form.rows_block(form.inner, inner)),
        "a": (given.a, factor(form.inner, inner)),
        "dz_in": (given.dz, form.rows_block(rank, inner)),
        "z": (given.z, form.rows_block(rank, outer)),
        "b": (given.b, factor(form.outer, outer)),
        "dy": (given.dy, form.rows_block(form.outer, outer)),
        "da_before": (sums[0], anywhere),
        "db_before": (sums[1], anywhere),
    }
    results = {}
    if given.x is not None:
        results["dx"] = (jax.ShapeDtypeStruct(given.x.shape, form.dtype), form.rows_block(form.inner, written))
    else:
        results["dz"] = (jax.ShapeDtypeStruct(given.z.shape, jnp.float32), form.rows_block(rank, written))
    for name, before in zip(("da", "db"), sums, strict=True):
        if before is not None:
            results[name] = (jax.ShapeDtypeStruct(before.shape, jnp.float32), anywhere)
    return operands, results


def _body(onto, form, ref, at, scale, _order, _source):
    """One step of one tile."""
    t, j = pl.program_id(0), pl.program_id(1)
    live = at[t] >= 0
    if "dy" in ref:

        @pl.when(live & (j < form.outer.blocks))
        def _outer():
            dy = ref["dy"][...].astype(form.dtype)
            part = dot(ref["b"][0].astype(form.dtype), dy, (1, 1))
            _through_expand(form, j, part, scale[t], ref)
            z = ref["z"][...]
            _add(form, onto, at, j, lambda c: dot(z, dy[:, c], (0, 0)), _target(ref, "db"))

    if "x" in ref:
        block = j - form.steps + form.inner.blocks
        if "dz_in" in ref:

            @pl.when(live & (j == 0))
            def _given():
                ref["dz_scaled"][...] = (ref["dz_in"][...].astype(jnp.float32).T * scale[t]).astype(form.dtype)

        @pl.when(live & (block >= 0))
        def _inner():
            dz, a, x = ref["dz_scaled"][...], ref["a"], ref["x"]
            for c in chunks(form.inner.width, CHUNK):
                ref["dx"][:, c] = dot(dz, a[0, :, c].astype(form.dtype), (0, 0)).astype(ref["dx"].dtype)
            _add(form, onto, at, block, lambda c: dot(dz, x[:, c], (1, 0)), _target(ref, "da"))

    @pl.when(~live)
    def _absent():
        rows = ref["dx" if "x" in ref else "dz"]
        rows[...] = jnp.zeros_like(rows)

    @pl.when((t == form.groups - 1) & (j == form.steps - 1) & (at[0] >= 0))
    def _end():
        for name in ("da", "db"):
            if name in ref:
                for block in range(ref[name + "_sums"].shape[0]):
                    _sending(_target(ref, name), 0, block).wait()


def _through_expand(form, j, part, scale, ref):
    """Add block j's part of the gradient of z^T; after the last one, what follows takes it scaled."""

    def finish(total):
        if "x" in ref:
            ref["dz_scaled"][...] = (total * scale).astype(form.dtype)
        else:
            ref["dz"][...] = total.T

    if form.outer.blocks == 1:
        finish(part)
        return
    total = ref["partial"]

    @pl.when(j == 0)
    def _first():
        total[...] = part

    @pl.when(j > 0)
    def _next():
        total[...] += part

    @pl.when(j == form.outer.blocks - 1)
    def _last():
        finish(total[...])


def _add(form, onto, at, block, product, target):
    """Add this tile's part of a factor's gradient to its slot's sums; after the slot's last tile, send them off."""
    sums = target[0]
    t, own = pl.program_id(0), at[pl.program_id(0)]
    before = jnp.maximum(t - 1, 0)
    first = (t == 0) | (at[before] != own)
    after = jnp.minimum(t + 1, form.groups - 1)
    last = (t == form.groups - 1) | (at[after] != own)

    @pl.when(first & (t > 0))
    def _free():
        _sending(target, at[before], block).wait()

    fresh = first
    if onto:
        fresh = False

        @pl.when(first)
        def _fetch():
            copy = _sending(target, own, block, back=True)
            copy.start()
            copy.wait()

    for c in chunks(sums.shape[2], CHUNK):
        part = product(c)
        sums[block, :, c] = jnp.where(fresh, part, sums[block, :, c] + part)

    @pl.when(last)
    def _send():
        _sending(target, own, block).start()


def _target(ref, name):
    """Where a factor's gradient is summed, and where it goes."""
    return ref[name + "_sums"], ref[name], ref[name + "_sent"]


def _sending(target, own, block, back=False):
    """The copy of a block of sums to its place in the bank's gradient, or back."""
    sums, bank, semaphores = target
    width = sums.shape[2]
    place = bank.at[own] if sums.shape[0] == 1 else bank.at[own, :, pl.ds(block * width, width)]
    ends = (place, sums.at[block]) if back else (sums.at[block], place)
    return pltpu.make_async_copy(*ends, semaphores.at[block])
