"""An expert's product and its adapters' in one kernel on a TPU: `y = x w + (scale x first^T) second`, row by row.

Forward that is a projection (first a, second b); with the matrix turned and the factors changed about it is the
gradient of its input. The grid is (tiles, blocks of the output's columns). A tile's rows of one (expert, slot) are a
run; the factors of a tile's runs are copied from the bank while the tile before computes.

The small product is computed transposed, `first x^T`, for all rows of the tile, and each row chooses its own run's: a
row is a column of it, and its bits do not depend on the other rows nor on how many runs there are.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.expert_lora import block_sizes
from kernels.grouped_matmul.pallas_tpu import Form, form_of, visits
from kernels.lora_matmul.pallas_blocks import CHUNK, Plan, call, chunks, dot
from kernels.tiles import TileMap, sums_before


class Runs(NamedTuple):
    """Of each tile `K` places for its runs, as many as it has subtiles; the first `count` are taken.

    `at` is a run's (slot, expert) in the folded bank, its rows are those from `start` up to `end` of the tile (none:
    0), `scale` what its small product is multiplied by. `of [NT * K]` is each subtile's run, -1 for none.
    """

    count: Any
    at: Any
    start: Any
    end: Any
    scale: Any
    of: Any


def runs_of(tiles: TileMap, pair, scale) -> Runs:
    """`pair [NS]` is each subtile's (slot, expert), -1 for none; `scale [NS]` its scale."""
    places = tiles.tile // tiles.subtile
    pair, scale = pair.reshape(-1, places), scale.reshape(-1, places)
    before = jnp.pad(pair[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    head = ((pair >= 0) & (pair != before)).astype(jnp.int32)
    of = jnp.where(pair >= 0, sums_before(head) + head - 1, -1)
    each = jnp.arange(places, dtype=jnp.int32)
    own = of[:, None] == each[None, :, None]  # [tiles, runs, subtiles]

    def chosen(values, absent):
        return jnp.max(jnp.where(own, values, absent), axis=2).reshape(-1)

    start = tiles.tile - chosen(tiles.tile - each[None, None] * tiles.subtile, 0)
    end = chosen((each[None, None] + 1) * tiles.subtile, 0)
    scale = jnp.sum(jnp.where(own & (head[:, None] > 0), scale[:, None], 0), axis=2).reshape(-1)
    count = jnp.sum(head, axis=1, dtype=jnp.int32)
    return Runs(count, chosen(pair[:, None], -1), start, end, scale, of.reshape(-1))


@dataclass(frozen=True)
class Gathered:
    """How blocks `[rank, width]` of a factor come: `most` runs' at once, of one block, by turns into two buffers."""

    rank: int
    width: int
    blocks: int
    most: int
    turns: int

    def scratch(self, dtype) -> dict[str, Any]:
        """The buffers, and what tells that they are full."""
        return {
            "blocks": pltpu.VMEM((2, self.most, self.rank, self.width), dtype),
            "arrived": pltpu.SemaphoreType.DMA((2,)),
        }


def gathered(bank, width: int, places: int) -> Gathered:
    """`bank [P, R, W]` in blocks of `width` columns, for tiles of up to `places` runs."""
    rank = bank.shape[1]
    most = max(min(places, block_sizes.FACTOR_BYTES // (rank * width * bank.dtype.itemsize)), 1)
    most = next(n for n in range(most, 0, -1) if places % n == 0)
    return Gathered(rank, width, bank.shape[2] // width, most, places // most)


@dataclass(frozen=True)
class Mixed:
    """One kernel at one shape: the experts' product, and what is gathered of each factor there is."""

    base: Form
    places: int
    first: Gathered | None
    second: Gathered | None

    @property
    def groups(self) -> int:
        """Tiles."""
        return self.base.groups

    @property
    def steps(self) -> int:
        """Blocks of a tile's columns."""
        return self.base.steps

    @property
    def subtile(self) -> int:
        """Rows that belong to one run for sure."""
        return self.base.tile // self.places


class Given(NamedTuple):
    """Rows `x [NB, D]`, experts' `w`, and banks `first [P, R, D]` or the small product's rows `small [NB, R]` instead,
    and `second [P, R, F]`, or neither.
    """

    x: Any
    w: Any
    first: Any = None
    small: Any = None
    second: Any = None


def product(name: str, tiles: TileMap, offset, runs: Runs, given: Given, transpose: bool = False) -> tuple[Any, Any]:
    """(y `[NB, F]`, small `[NB, R]` if computed), in x's type; small is zero where a row has no run.

    Rows without a run keep the bits of the experts' product.
    """
    base = form_of(given.x, given.w, tiles, transpose)
    places = tiles.tile // tiles.subtile
    first = None if given.first is None else gathered(given.first, base.inner, places)
    second = None if given.second is None else gathered(given.second, base.width, places)
    form = Mixed(base, places, first, second)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    operands = {
        "x": (given.x, base.block(base.inner)),
        "w": (given.w, base.matrix),
        "first": (given.first, anywhere),
        "small": (given.small, None if given.small is None else base.block(given.small.shape[1])),
        "second": (given.second, anywhere),
    }
    results, scratch = {"y": base.result}, {"total": pltpu.VMEM((base.tile, base.width), jnp.float32)}
    if first is not None:
        block = pl.BlockSpec((base.tile, first.rank), lambda t, *_: (t, 0))
        results["small_out"] = (jax.ShapeDtypeStruct((base.rows, first.rank), base.dtype), block)
        scratch["turned"] = pltpu.VMEM((first.rank, base.tile), jnp.float32)
    for key, what, bank in (("first", first, given.first), ("second", second, given.second)):
        if what is not None and bank is not None:
            scratch |= {f"{key}_{part}": room for part, room in what.scratch(bank.dtype).items()}
    plan = Plan((*visits(tiles, offset), *runs), operands, results, scratch, {})
    found = call(form, name, _body, plan, base.cost(given.w))
    return found["y"], found.get("small_out")


def _body(form, ref, _visit, _matrix, live, *runs):
    """One block of one tile."""
    runs, t = Runs(*runs), pl.program_id(0)
    if form.first is not None:
        pl.when(pl.program_id(1) == 0)(lambda: _shrink(form, ref, runs))

    @pl.when(t < live[0])
    def _live():
        ref["total"][...] = form.base.product(ref["x"][...], ref["w"][0])

    if form.second is not None:
        _expand(form, ref, runs)

    @pl.when(t < live[0])
    def _done():
        ref["y"][...] = ref["total"][...].astype(form.base.dtype)

    @pl.when(t >= live[0])
    def _dead():
        ref["y"][...] = jnp.zeros_like(ref["y"])


def _arrived(form, what, name, item, ref, runs):
    """The blocks of one turn of one tile, and how many are taken; those of the next turn are asked for."""
    bank, blocks, semaphores = ref[name], ref[name + "_blocks"], ref[name + "_arrived"]

    def taken(item):
        count = runs.count[item // (what.blocks * what.turns)]
        return jnp.clip(count - item % what.turns * what.most, 0, what.most)

    def copy(item, i):
        tile, block = item // (what.blocks * what.turns), item // what.turns % what.blocks
        pair = bank.at[runs.at[tile * form.places + item % what.turns * what.most + i]]
        source = pair if what.blocks == 1 else pair.at[:, pl.ds(block * what.width, what.width)]
        return pltpu.make_async_copy(source, blocks.at[item % 2, i], semaphores.at[item % 2])

    def ask(item):
        jax.lax.fori_loop(0, taken(item), lambda i, _: copy(item, i).start(), None)

    pl.when(item == 0)(lambda: ask(item))
    pl.when(item + 1 < form.groups * what.blocks * what.turns)(lambda: ask(item + 1))
    jax.lax.fori_loop(0, taken(item), lambda i, _: copy(item, i).wait(), None)
    return blocks.at[item % 2], taken(item)


def _shrink(form, ref, runs):
    """Each row's small product, scaled."""
    what, t, dtype = form.first, pl.program_id(0), form.base.dtype
    turned, out = ref["turned"], ref["small_out"]
    out[...] = jnp.zeros_like(out)
    column = jax.lax.broadcasted_iota(jnp.int32, turned.shape, 1)
    for turn in range(what.turns):
        blocks, taken = _arrived(form, what, "first", t * what.turns + turn, ref, runs)
        place = t * form.places + turn * what.most

        def add(found, turn=turn, place=place):
            """Choose among the runs' products, stacked."""
            own = jnp.zeros(turned.shape, jnp.float32) if turn == 0 else turned[...]
            for i in range(found.shape[0] // what.rank):
                mine = (column >= runs.start[place + i]) & (column < runs.end[place + i])
                own = jnp.where(mine, found[i * what.rank : (i + 1) * what.rank] * runs.scale[place + i], own)
            turned[...] = own

        @pl.when(taken == 1)
        def _one(blocks=blocks, add=add):
            add(dot(blocks[0].astype(dtype), ref["x"][...], (1, 1)))

        if what.most > 1:

            @pl.when(taken > 1)
            def _several(blocks=blocks, add=add):
                stacked = blocks[...].astype(dtype).reshape(what.most * what.rank, what.width)
                add(dot(stacked, ref["x"][...], (1, 1)))

    @pl.when(runs.count[t] > 0)
    def _out():
        out[...] = turned[...].T.astype(dtype)


def _expand(form, ref, runs):
    """Add each row's run's part to the experts' product."""
    what, t, j, tile = form.second, pl.program_id(0), pl.program_id(1), form.base.tile
    total, dtype = ref["total"], form.base.dtype
    small = ref["small_out" if form.first is not None else "small"]
    for turn in range(what.turns):
        blocks, taken = _arrived(form, what, "second", (t * what.blocks + j) * what.turns + turn, ref, runs)
        place = t * form.places + turn * what.most

        def whole_tile(count, blocks=blocks, place=place):
            z = small[...]
            for c in chunks(what.width, CHUNK):
                row = jax.lax.broadcasted_iota(jnp.int32, (tile, c.stop - c.start), 0)
                before = result = total[:, c]
                for i in range(count):
                    mine = (row >= runs.start[place + i]) & (row < runs.end[place + i])
                    delta = dot(z, blocks[i, :, c].astype(dtype), (1, 0))
                    result = jnp.where(mine, before + delta, result)
                total[:, c] = result

        @pl.when(taken == 1)
        def _one(whole_tile=whole_tile):
            whole_tile(1)

        if what.most > 1 and form.subtile == 1:
            pl.when(taken > 1)(lambda whole_tile=whole_tile: whole_tile(what.most))
        elif what.most > 1:
            _by_subtiles(form, total, small, blocks, (runs, turn, taken))


def _by_subtiles(form, total, small, blocks, where):
    """Add their runs' parts to the subtiles of a tile of several."""
    what, (runs, turn, taken) = form.second, where
    for s in range(form.places):
        rows = slice(s * form.subtile, (s + 1) * form.subtile)
        own = runs.of[pl.program_id(0) * form.places + s] - turn * what.most

        @pl.when((taken > 1) & (own >= 0) & (own < what.most))
        def _subtile(rows=rows, own=own):
            z = small[rows]
            for c in chunks(what.width, CHUNK):
                total[rows, c] += dot(z, blocks[own, :, c].astype(form.base.dtype), (1, 0))
