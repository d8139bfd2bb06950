"""What the TPU's attention kernels share: one place that calls Pallas, and one walk over blocks read ahead of use.

The places of a grid of (tiles, parts of the heads) are taken in order. At each, a kernel walks `counts[tile]` blocks;
the next block, be it the first of the next place, is on its way from HBM while one is computed on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.implementation import interpreter
from kernels.paged_attention.block_sizes import LANES, SUBLANES
from kernels.paged_attention.xla import Latent, measures

BUFFERS = 2


@dataclass(frozen=True)
class Form:
    """One kernel at one shape: `tiles` tiles, `parts` of `heads` key heads, each with `group` query heads.

    `rows` are the queries of a tile times `group`, padded; `keys` keys make a block.
    """

    tiles: int
    parts: int
    heads: int
    group: int
    rows: int
    keys: int
    size: int
    dtype: Any
    latent: Latent | None = None

    @property
    def values(self) -> int:
        """The width of a value."""
        return measures(self.size, self.latent)[0]

    @property
    def scale(self) -> float:
        return measures(self.size, self.latent)[1]

    @property
    def pools(self) -> dict[str, str]:
        """The arrays of keys, and of values where keys do not hold them, and the name of a block of each."""
        return {"keys": "k"} if self.latent is not None else {"keys": "k", "values": "v"}

    @property
    def gradients(self) -> list[str]:
        """Names of the gradients of those arrays."""
        return ["d" + name for name in self.pools.values()]

    def block(self, *shape: int) -> pl.BlockSpec:
        """The block of a tile and a part in an array `[tiles, parts * n, ...]`, where `shape` is `(n, ...)`."""
        return pl.BlockSpec((1, *shape), lambda t, part, *_: (t, part, *[0] * (len(shape) - 1)))


@dataclass(frozen=True)
class Plan:
    """What a kernel reads and writes, by name.

    `prefetched` are arrays of scalars; `operands` are (array, block), `results` (shape, block), `scratch` memory;
    `updated` names the result that takes an operand's place.
    """

    prefetched: dict[str, Any]
    operands: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[Any, Any]]
    scratch: dict[str, Any]
    updated: dict[str, str] = field(default_factory=dict)


def call(form: Form, name: str, body, plan: Plan, cost: pl.CostEstimate) -> dict[str, Any]:
    """The results, by name, of `body(form, ref)` at each place of the grid. `ref` holds all of the plan by name."""
    scratch = {**plan.scratch, "turn": pltpu.SMEM((1,), jnp.int32), "arrived": pltpu.SemaphoreType.DMA((BUFFERS,))}
    names = (*plan.prefetched, *plan.operands, *plan.results, *scratch)

    def kernel(*refs):
        body(form, dict(zip(names, refs, strict=True)))

    found = pl.pallas_call(
        kernel,
        name=name,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan.prefetched),
            grid=(form.tiles, form.parts),
            in_specs=[block for _, block in plan.operands.values()],
            out_specs=[block for _, block in plan.results.values()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=[shape for shape, _ in plan.results.values()],
        input_output_aliases={
            len(plan.prefetched) + list(plan.operands).index(before): list(plan.results).index(after)
            for before, after in plan.updated.items()
        },
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), disable_bounds_checks=True
        ),
        cost_estimate=cost,
        interpret=interpreter(),
    )(*plan.prefetched.values(), *(array for array, _ in plan.operands.values()))
    return dict(zip(plan.results, found, strict=True))


def following(counts) -> jax.Array:
    """For each tile the next one with blocks to walk, or the number of tiles; last, the first one of all."""
    tiles = counts.shape[0]
    here = jnp.where(counts > 0, jnp.arange(tiles, dtype=jnp.int32), tiles)
    from_here = jax.lax.cummin(here, reverse=True)
    return jnp.concatenate([from_here[1:], jnp.full(1, tiles, jnp.int32), from_here[:1]])


def walk(form: Form, ref: dict[str, Any], copies: Callable, compute: Callable) -> None:
    """`compute(j, slot)` for the blocks j of this place in order, each in its `slot` of the buffers.

    `copies(tile, part, j, slot, do)` calls `do(source, buffer)` for all that block j of that place needs. Prefetched
    are `counts [tiles]` and `follow`, what `following` gave.
    """
    t, part = pl.program_id(0), pl.program_id(1)
    count, follow, turn = ref["counts"][t], ref["follow"], ref["turn"]

    def copy(source, buffer, slot):
        return pltpu.make_async_copy(source, buffer, ref["arrived"].at[slot])

    def start(tile, part, j, slot):
        copies(tile, part, j, slot, lambda source, buffer: copy(source, buffer, slot).start())

    @pl.when((t == follow[form.tiles]) & (part == 0))
    def _first():
        turn[0] = 0
        start(t, part, 0, 0)

    def step(j, carry):
        slot = turn[0]
        inside, ended = j + 1 < count, part + 1 == form.parts
        tile = jnp.where(inside | ~ended, t, follow[t])

        @pl.when(tile < form.tiles)
        def _ahead():
            next_part = jnp.where(inside, part, jnp.where(ended, 0, part + 1))
            start(tile, next_part, jnp.where(inside, j + 1, 0), 1 - slot)

        copies(t, part, j, slot, lambda source, buffer: copy(source, buffer, slot).wait())
        compute(j, slot)
        turn[0] = 1 - slot
        return carry

    jax.lax.fori_loop(0, count, step, 0)


def page_copies(pages, heads, ends, do) -> None:
    """`do` for pages that follow each other in a block of keys.

    `pages` is (how many, the number of the i-th); `heads` those that are read; `ends` are pairs of arrays
    `[P, G, B, K]` and buffers `[heads, C, K]`.
    """
    count, number = pages
    page, keys = ends[0][0].shape[-2], ends[0][1].shape[-2]

    def one(i, carry):
        there = pl.ds(i * page if isinstance(i, int) else pl.multiple_of(i * page, page), page)
        for array, buffer in ends:
            do(array.at[number(i), heads], buffer.at[:, there])
        return carry

    @pl.when(count == keys // page)
    def _all():  # side by side, this takes fewer cycles
        for i in range(keys // page):
            one(i, None)

    @pl.when(count < keys // page)
    def _some():
        jax.lax.fori_loop(0, count, one, 0)


def own_heads(form: Form, part):
    """The key heads of a part."""
    return pl.ds(part * form.heads, form.heads)


def query_positions(form: Form, first, axis: int):
    """Positions of a tile's queries, the first of which is at `first`: `[M, LANES]`, or with axis 1 `[1, M]`."""
    shape = (1, form.rows) if axis else (form.rows, LANES)
    return first + jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, shape, axis), jnp.int32(form.group))


def dot(left, right, contract: tuple[int, int]):
    """A product over dimension `contract` of each side, accumulated in float32."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=exact, preferred_element_type=jnp.float32)


def chunks(length: int, most: int) -> list[slice]:
    """An axis in pieces."""
    return [slice(start, min(start + most, length)) for start in range(0, length, most)]


def lanes(x, width: int):
    """A value that is the same along all lanes, `[M, LANES]`, as `[M, width]`."""
    if width > LANES:
        x = jnp.concatenate([x] * -(-width // LANES), axis=1)
    return x[:, :width]


def column(row, count: int):
    """`[1, M]` along lanes as `[M, LANES]`, the same along all lanes."""
    return jnp.broadcast_to(row, (LANES, count)).T


def block_of(form: Form, ref, slot, head):
    """A head's block of keys, and their values."""
    k = ref["k"][slot, head]
    return k, k[:, : form.values] if form.latent is not None else ref["v"][slot, head]


def zero_from(buffer, slot, end) -> None:
    """Rows from `end` on of a slot `[heads, C, K]` become zeros: whatever was there, NaN too, is of no one here."""
    heads, keys, size = buffer.shape[1:]
    mine = jax.lax.broadcasted_iota(jnp.int32, (keys, size), 0) < end
    for head in range(heads):
        buffer[slot, head] = jnp.where(mine, buffer[slot, head], 0)


def padded(x, axis: int):
    """Zeros up to a multiple of eight."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % SUBLANES)
    return jnp.pad(x, widths) if widths[axis][1] else x
