"""Mixed LoRA product of single rows, each with a slot of its own, on a TPU.

The grid is (groups of eight rows, blocks). Each row's block of a factor is copied from the bank by a transfer of its
own, all eight of a step at once, while the step before computes. Every product is taken for all eight rows and each
row chooses its own: a row never sees what another's slot holds, and is computed as in a tile.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lora_matmul.pallas_blocks import Axis, Form, Operands, Plan, call, chunks, dot

ROW_CHUNK = 1024  # columns of eight rows at once


def single_rows(form: Form, at, scale, given: Operands):
    """(y plus deltas `[T, F]`, z `[T, R]`): what there is of them, from x and a, or z, and b if there is one.

    `at [groups * tile]` is each row's row of the bank, -1 for none, and `scale` its scale. y is updated in place;
    without it float32 deltas are written with zeros where there is no slot, as z is. Only these first rows are written.
    """
    inner = form.rows_block(Axis(form.rank, 1), lambda g, *_: (g, 0))
    outer = form.rows_block(form.outer, lambda g, j, *_: (g, jnp.maximum(j - form.steps + form.outer.blocks, 0)))
    bank = pl.BlockSpec(memory_space=pl.ANY)
    operands = {
        "x": (given.x, form.rows_block(form.inner, lambda g, j, *_: (g, jnp.minimum(j, form.inner.blocks - 1)))),
        "a": (given.a, bank),
        "z": (given.z, inner),
        "b": (given.b, bank),
        "y": (given.y, outer),
    }
    results, scratch = {}, {}
    if given.b is not None:
        results["out"] = (given.sum_of(form.outer.total), outer)
        scratch["b_blocks"] = pltpu.VMEM((2, form.tile, form.rank, form.outer.width), given.b.dtype)
        scratch["b_arrived"] = pltpu.SemaphoreType.DMA((2,))
    if given.x is not None:
        results["z_out"] = (jax.ShapeDtypeStruct((given.rows, form.rank), form.dtype), inner)
        scratch["a_blocks"] = pltpu.VMEM((2, form.tile, form.rank, form.inner.width), given.a.dtype)
        scratch["a_arrived"] = pltpu.SemaphoreType.DMA((2,))
        scratch["partial"] = pltpu.VMEM((form.tile * form.rank, form.tile), jnp.float32)
    full = jnp.all(at.reshape(form.groups, form.tile) >= 0, axis=1).astype(jnp.int32)
    plan = Plan((at, scale, full), operands, results, scratch, {"y": "out"})
    moved = form.cost(1, given.x, given.y, results.get("out", (None,))[0], each=(given.a, given.b))
    found = call(form, "lora_rows" + form.part, _body, plan, moved)
    return found.get("out"), found.get("z_out")


def _body(form, ref, at, scale, full):
    """One step of one group of rows."""
    g, j = pl.program_id(0), pl.program_id(1)
    if "x" in ref:

        @pl.when(j < form.inner.blocks)
        def _shrink():
            item = g * form.inner.blocks + j
            factor = _arrived(form, form.inner, at, full, item, ref["a"], ref["a_blocks"], ref["a_arrived"])
            factor = factor[...].astype(form.dtype).reshape(form.tile * form.rank, form.inner.width)
            _accumulate(form, g, j, dot(factor, ref["x"][...], (1, 1)), at, scale, ref)

    if "b" in ref:

        @pl.when(j >= form.steps - form.outer.blocks)
        def _expand():
            item = g * form.outer.blocks + j - form.steps + form.outer.blocks
            factor = _arrived(form, form.outer, at, full, item, ref["b"], ref["b_blocks"], ref["b_arrived"])
            z = ref["z_out" if "x" in ref else "z"][...]
            for c in chunks(form.outer.width, ROW_CHUNK):
                row = jax.lax.broadcasted_iota(jnp.int32, (form.tile, c.stop - c.start), 0)
                before = ref["y"][:, c].astype(jnp.float32) if "y" in ref else None
                result = jnp.zeros(row.shape, jnp.float32) if before is None else before
                for i in range(form.tile):
                    delta = dot(z, factor[i, :, c].astype(form.dtype), (1, 0))
                    own = (row == i) & (at[g * form.tile + i] >= 0)
                    result = jnp.where(own, delta if before is None else before + delta, result)
                ref["out"][:, c] = result.astype(ref["out"].dtype)


def _arrived(form, axis, at, full, item, bank, blocks, semaphores):
    """The factors' blocks of `item` (group times blocks of the axis, plus block), having asked for the next item's."""

    def copy(item, i):
        block = item % axis.blocks
        row = bank.at[at[item // axis.blocks * form.tile + i]]
        source = row if axis.blocks == 1 else row.at[:, pl.ds(block * axis.width, axis.width)]
        return pltpu.make_async_copy(source, blocks.at[item % 2, i], semaphores.at[item % 2])

    def whole(item):
        return full[item // axis.blocks] != 0

    def ask(item):
        @pl.when(whole(item))
        def _all():
            for i in range(form.tile):
                copy(item, i).start()

        @pl.when(~whole(item))
        def _some():
            for i in range(form.tile):
                pl.when(at[item // axis.blocks * form.tile + i] >= 0)(lambda i=i: copy(item, i).start())

    @pl.when(item == 0)
    def _first():
        ask(item)

    @pl.when(item + 1 < form.groups * axis.blocks)
    def _next():
        ask(item + 1)

    here = blocks.at[item % 2]

    @pl.when(whole(item))
    def _all():  # one wait for as many bytes as eight copies bring
        pltpu.make_async_copy(here, here, semaphores.at[item % 2]).wait()

    @pl.when(~whole(item))
    def _some():
        for i in range(form.tile):
            pl.when(at[item // axis.blocks * form.tile + i] >= 0)(lambda i=i: copy(item, i).wait())

    return here


def _accumulate(form, g, j, part, at, scale, ref):
    """Add block j's part of every factor's z^T; after the last one, each row's own z."""

    def finish(total):
        column = jax.lax.broadcasted_iota(jnp.int32, (form.rank, form.tile), 1)
        own = jnp.zeros((form.rank, form.tile), jnp.float32)
        for i in range(form.tile):
            row = g * form.tile + i
            product = total[i * form.rank : (i + 1) * form.rank] * scale[row]
            own = jnp.where((column == i) & (at[row] >= 0), product, own)
        ref["z_out"][...] = own.T.astype(form.dtype)

    if form.inner.blocks == 1:
        finish(part)
        return
    total = ref["partial"]

    @pl.when(j == 0)
    def _first():
        total[...] = part

    @pl.when(j > 0)
    def _next():
        total[...] += part

    @pl.when(j == form.inner.blocks - 1)
    def _last():
        finish(total[...])
