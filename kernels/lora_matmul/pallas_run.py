"""Mixed LoRA product of tiles of rows with one slot each, on a TPU.

The grid is (tiles, blocks): first x and a block by block into z, kept in VMEM, then y and b block by block. A tile's
factors are picked in place from the bank by its prefetched row of it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lora_matmul.pallas_blocks import CHUNK, Axis, Form, Operands, Plan, call, chunks, dot


def run(form: Form, at, scale, given: Operands, into=(None, None)):
    """(y plus deltas `[T, F]`, z `[T, R]`): what there is of them, from x and a, or z, and b if there is one.

    `at [groups]` is each tile's row of the bank, -1 for none, and `scale [groups]` its scale. y is updated in place;
    without it float32 deltas are written with zeros where there is no slot. So is z if it is all that is asked for.
    Only these tiles' rows are written, those of `into`, a pair like the result, where it is given.
    """

    def read(t, j, _at, _scale, visit, hold):
        j = jnp.where(hold[t] < 0, j, hold[t])
        return visit[t], jnp.minimum(j, form.inner.blocks - 1), jnp.maximum(j - form.steps + form.outer.blocks, 0)

    def write(t, j, *prefetched):
        skipping = given.y is not None
        return read(t, j, *prefetched) if skipping else (t, 0, jnp.maximum(j - form.steps + form.outer.blocks, 0))

    def factor(width, axis):
        return pl.BlockSpec((1, form.rank, width), lambda *p: (jnp.maximum(p[2][p[4][p[0]]], 0), 0, read(*p)[axis]))

    def inner(position):
        return form.rows_block(Axis(form.rank, 1), lambda *p: (position(*p)[0], 0))

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    operands = {
        "x": (given.x, form.rows_block(form.inner, lambda *p: read(*p)[:2])),
        "a": (given.a, factor(form.inner.width, 1)),
        "z": (given.z, inner(read)),
        "b": (given.b, factor(form.outer.width, 2)),
        "y": (given.y, form.rows_block(form.outer, lambda *p: read(*p)[::2])),
        "out_into": (into[0] if given.y is None else None, anywhere),
        "z_into": (into[1], anywhere),
    }
    results = {}
    if given.b is not None:
        block = form.rows_block(form.outer, lambda *p: write(*p)[::2])
        results["out"] = (given.sum_of(form.outer.total), block)
    if given.x is not None:
        results["z_out"] = (jax.ShapeDtypeStruct((given.rows, form.rank), form.dtype), inner(write))
    scratch = {"partial": pltpu.VMEM((form.rank, form.tile), jnp.float32)}
    updated = {"y": "out", "out_into": "out", "z_into": "z_out"}
    plan = Plan((at, scale, *stops(at, form.steps)), operands, results, scratch, updated)
    moved = (given.x, given.a, given.b, given.y, results.get("out", (None,))[0])
    found = call(form, "lora_run" + form.part, _body, plan, form.cost(1, *moved))
    return found.get("out"), found.get("z_out")


def stops(at, steps: int):
    """(visit, hold) `[groups]`: where the kernel stays while a tile has no slot, so that it moves nothing.

    It stays with the last tile that has one, at its last step (`hold`), or before the first one at the first step of
    that. A tile with a slot is visited itself; its hold is -1: it takes all steps.
    """
    place = jnp.arange(at.shape[0], dtype=jnp.int32)
    before = jax.lax.cummax(jnp.where(at >= 0, place, -1))
    first = jnp.argmax(at >= 0).astype(jnp.int32)
    hold = jnp.where(at >= 0, -1, jnp.where(before < 0, 0, steps - 1)).astype(jnp.int32)
    return jnp.where(before < 0, first, before), hold


def _body(form, ref, at, scale, visit, _hold):
    """One step of one tile."""
    t, j = pl.program_id(0), pl.program_id(1)
    live = at[t] >= 0
    if "x" in ref:

        @pl.when(live & (j < form.inner.blocks))
        def _shrink():
            factor = ref["a"][0].astype(form.dtype)
            _accumulate(form, j, dot(factor, ref["x"][...], (1, 1)), scale[t], ref["partial"], ref["z_out"])

    if "b" in ref:

        @pl.when(live & (j >= form.steps - form.outer.blocks))
        def _expand():
            z = ref["z_out" if "x" in ref else "z"][...]
            for c in chunks(form.outer.width, CHUNK):
                delta = dot(z, ref["b"][0, :, c].astype(form.dtype), (1, 0))
                total = ref["y"][:, c].astype(jnp.float32) + delta if "y" in ref else delta
                ref["out"][:, c] = total.astype(ref["out"].dtype)

    _absent(ref, live, at[visit[t]] < 0)


def _accumulate(form, j, part, scale, partial_ref, z_ref):
    """Add block j's part of z^T; after the last one, z."""
    if form.inner.blocks == 1:
        z_ref[...] = (part * scale).T.astype(form.dtype)
        return

    @pl.when(j == 0)
    def _first():
        partial_ref[...] = part

    @pl.when(j > 0)
    def _next():
        partial_ref[...] += part

    @pl.when(j == form.inner.blocks - 1)
    def _last():
        z_ref[...] = (partial_ref[...] * scale).T.astype(form.dtype)


def _absent(ref, live, nobody):
    """What a tile without a slot leaves: zeros, or y, which must be written only where no tile has one (`nobody`)."""
    if "y" in ref:

        @pl.when(nobody)
        def _keep():
            ref["out"][...] = ref["y"][...]
    else:

        @pl.when(~live)
        def _zeros():
            out = ref["out" if "out" in ref else "z_out"]
            out[...] = jnp.zeros_like(out)
