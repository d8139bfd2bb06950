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

from kernels.lora_matmul.pallas_blocks import CHUNK, Form, call, chunks, dot

PREFETCHED = 4


def run_backward(form: Form, at, scale, *, x=None, a=None, dz=None, z=None, b=None, dy=None, onto=(None, None)):
    """(dx, da, dz, db): what there is of them, from x, a and dz, or z, b and dy, or all but dz.

    `x [T, D]` and `dy [T, F]` are of all rows, `z` and `dz [groups * tile, R]` of these. `at [groups]` is each tile's
    row of the bank, -1 for none. dx is that of these rows only, zeros where there is no slot; da and db are float32,
    of the whole bank. dz is given without x only: float32, zeros where there is no slot, before the scale. da and
    db are added to those of `onto` where it is given, in order.
    """
    order = jnp.argsort(jnp.where(at < 0, jnp.iinfo(jnp.int32).max, at), stable=True).astype(jnp.int32)
    at, scale = at[order], scale[order]
    live = jnp.sum(at >= 0, dtype=jnp.int32)
    # Tiles without a slot come last: nothing is read for them.
    source = order[jnp.minimum(jnp.arange(form.groups, dtype=jnp.int32), jnp.maximum(live - 1, 0))]

    def outer_block(t, j, at, _scale, _order, source):
        return source[t], jnp.where(at[t] < 0, form.outer.blocks - 1, jnp.minimum(j, form.outer.blocks - 1))

    def inner_block(t, j, at, _scale, _order, source):
        block = jnp.maximum(j - form.steps + form.inner.blocks, 0)
        return source[t], jnp.where(at[t] < 0, form.inner.blocks - 1, block)

    def factor(axis, position):
        last = lambda t, at: jnp.maximum(at[jnp.where(at[t] < 0, 0, t)], 0)  # noqa: E731
        return pl.BlockSpec((1, form.rank, axis.width), lambda *p: (last(p[0], p[2]), 0, position(*p)[1]))

    def written(t, j, _at, _scale, order, _source):
        return order[t], jnp.maximum(j - form.steps + form.inner.blocks, 0)

    given = pl.BlockSpec((form.tile, form.rank), lambda *p: (p[5][p[0]], 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    da, db = (
        None if factor is None else jnp.zeros(factor.shape, jnp.float32) if before is None else before
        for factor, before in zip((a, b), onto, strict=True)
    )
    operands = {
        "x": (x, form.rows_block(form.inner, inner_block)),
        "a": (a, factor(form.inner, inner_block)),
        "dz_in": (dz, given),
        "z": (z, given),
        "b": (b, factor(form.outer, outer_block)),
        "dy": (dy, form.rows_block(form.outer, outer_block)),
        "da_before": (da, anywhere),
        "db_before": (db, anywhere),
    }
    operands = {name: pair for name, pair in operands.items() if pair[0] is not None}
    rows = form.groups * form.tile
    results, scratch, aliases = {}, {"partial": pltpu.VMEM((form.rank, form.tile), jnp.float32)}, {}
    if x is not None:
        block = (form.tile, form.inner.width)
        results["dx"] = (jax.ShapeDtypeStruct((rows, form.inner.total), x.dtype), pl.BlockSpec(block, written))
        scratch["dz_scaled"] = pltpu.VMEM((form.rank, form.tile), form.dtype)
    else:
        dz_block = pl.BlockSpec((form.tile, form.rank), lambda *p: (p[4][p[0]], 0))
        results["dz"] = (jax.ShapeDtypeStruct((rows, form.rank), jnp.float32), dz_block)
    for name, axis, before in (("da", form.inner, da), ("db", form.outer, db)):
        if before is not None:
            aliases[PREFETCHED + list(operands).index(name + "_before")] = len(results)
            results[name] = (jax.ShapeDtypeStruct(before.shape, jnp.float32), anywhere)
            scratch[name + "_sums"] = pltpu.VMEM((axis.blocks, form.rank, axis.width), jnp.float32)
            scratch[name + "_sent"] = pltpu.SemaphoreType.DMA((axis.blocks,))
    found = call(
        partial(_body, form, onto != (None, None), (*operands, *results, *scratch)),
        "lora_run" + ("" if form.both else "_expand" if x is None else "_shrink") + "_backward",
        pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=PREFETCHED,
            grid=(form.groups, form.steps),
            in_specs=[block for _, block in operands.values()],
            out_specs=[block for _, block in results.values()],
            scratch_shapes=list(scratch.values()),
        ),
        [shape for shape, _ in results.values()],
        aliases,
        form.cost(2, x, x, a, b, dy, da, db),
    )(at, scale, order, source, *(array for array, _ in operands.values()))
    found = dict(zip(results, found, strict=True))
    return tuple(found.get(name) for name in ("dx", "da", "dz", "db"))


def _body(form, onto, names, at, scale, _order, _source, *refs):
    """One step of one tile."""
    ref = dict(zip(names, refs, strict=True))
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
                    _sending(*_target(ref, name), 0, block).wait()


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
    """Add this tile's part of a factor's gradient to the sums of its slot; after the slot's last tile, send them off."""
    sums = target[0]
    t, own = pl.program_id(0), at[pl.program_id(0)]
    before = jnp.maximum(t - 1, 0)
    first = (t == 0) | (at[before] != own)
    after = jnp.minimum(t + 1, form.groups - 1)
    last = (t == form.groups - 1) | (at[after] != own)

    @pl.when(first & (t > 0))
    def _free():
        _sending(*target, at[before], block).wait()

    fresh = first
    if onto:
        fresh = False

        @pl.when(first)
        def _fetch():
            copy = _sending(*target, own, block, back=True)
            copy.start()
            copy.wait()

    for c in chunks(sums.shape[2], CHUNK):
        part = product(c)
        sums[block, :, c] = jnp.where(fresh, part, sums[block, :, c] + part)

    @pl.when(last)
    def _send():
        _sending(*target, own, block).start()


def _target(ref, name):
    """Where a factor's gradient is summed, and where it goes."""
    return ref[name + "_sums"], ref[name], ref[name + "_sent"]


def _sending(sums, bank, semaphores, own, block, back=False):
    """The copy of a block of sums to its place in the bank's gradient, or back."""
    width = sums.shape[2]
    place = bank.at[own] if sums.shape[0] == 1 else bank.at[own, :, pl.ds(block * width, width)]
    ends = (place, sums.at[block]) if back else (sums.at[block], place)
    return pltpu.make_async_copy(*ends, semaphores.at[block])
