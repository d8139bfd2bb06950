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
from kernels.tiles import TileMap


class Runs(NamedTuple):
    """The runs of all tiles, one after another, and the groups of a few runs of one tile that are copied together.

    Tile t has `count[t]` groups from `first[t]` on, group g has `size[g]` runs from `run[g]` on; there are
    `groups [1]` in all. `at` is a run's (slot, expert) in the folded bank, its rows are those from `start` up to `end`
    of its tile, `scale` what its small product is multiplied by.
    """

    first: Any
    count: Any
    run: Any
    size: Any
    groups: Any
    at: Any
    start: Any
    end: Any
    scale: Any


def runs_of(tiles: TileMap, pair, scale, pairs: int) -> Runs:
    """`pair [NS]` is each subtile's (slot, expert), -1 for none; `scale [NS]` its scale; there are at most `pairs`."""
    count, places = tiles.group.shape[0], tiles.tile // tiles.subtile
    place = jnp.arange(pair.shape[0], dtype=jnp.int32) % places
    before = jnp.pad(pair[:-1], (1, 0), constant_values=-1)
    after = jnp.pad(pair[1:], (0, 1), constant_values=-1)
    heads = (pair >= 0) & ((pair != before) | (place == 0))
    tails = (pair >= 0) & ((pair != after) | (place == places - 1))
    of_tile = jnp.sum(heads.reshape(count, places), axis=1, dtype=jnp.int32)
    of_tile_before = jnp.cumsum(of_tile, dtype=jnp.int32) - of_tile
    parts = -(-of_tile // block_sizes.RUNS)
    first = jnp.cumsum(parts, dtype=jnp.int32) - parts
    most = min(pair.shape[0], count + pairs)
    head, tail = _places_of(heads, most), _places_of(tails, most)
    group = jnp.arange(min(most, count + most // block_sizes.RUNS), dtype=jnp.int32)
    tile = jnp.minimum(jnp.searchsorted(first + parts, group, side="right", method="sort"), count - 1)
    done = (group - first[tile]) * block_sizes.RUNS
    return Runs(
        first=first,
        count=parts,
        run=of_tile_before[tile] + done,
        size=jnp.clip(of_tile[tile] - done, 0, block_sizes.RUNS),
        groups=jnp.sum(parts, dtype=jnp.int32)[None],
        at=pair[head],
        start=place[head] * tiles.subtile,
        end=(place[tail] + 1) * tiles.subtile,
        scale=scale[head],
    )


def _places_of(marked, most: int):
    """Where the first `most` marks are; past the last mark, the last place."""
    each = jnp.arange(1, most + 1, dtype=jnp.int32)
    found = jnp.searchsorted(jnp.cumsum(marked, dtype=jnp.int32), each, method="sort")
    return jnp.minimum(found, marked.shape[0] - 1).astype(jnp.int32)


@dataclass(frozen=True)
class Gathered:
    """How blocks `[rank, width]` of a factor come: those of a group's runs, of one of `blocks`, into two buffers."""

    rank: int
    width: int
    blocks: int

    def scratch(self, dtype) -> dict[str, Any]:
        """The buffers, and what tells that they are full."""
        return {
            "blocks": pltpu.VMEM((2, block_sizes.RUNS, self.rank, self.width), dtype),
            "arrived": pltpu.SemaphoreType.DMA((2,)),
        }


def gathered(bank, width: int) -> Gathered:
    """`bank [P, R, W]` in blocks of `width` columns."""
    return Gathered(bank.shape[1], width, bank.shape[2] // width)


@dataclass(frozen=True)
class Mixed:
    """One kernel at one shape: the experts' product, and what is gathered of each factor there is."""

    base: Form
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
    first = None if given.first is None else gathered(given.first, base.inner)
    second = None if given.second is None else gathered(given.second, base.width)
    form = Mixed(base, first, second)
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


def _each_group(form, what, name, ref, runs, use):
    """`use(blocks, size, run)` for each group of this tile: its factors' blocks, how many they are, its first run.

    While one is used the next one is copied, of this tile or of the next that has any.
    """
    bank, blocks, semaphores = ref[name], ref[name + "_blocks"], ref[name + "_arrived"]
    t, j = pl.program_id(0), pl.program_id(1) if what.blocks > 1 else 0
    first, count = runs.first[t], runs.count[t]

    def copies(group, block, buffer, act):
        def one(i, _):
            pair = bank.at[runs.at[runs.run[group] + i]]
            source = pair if what.blocks == 1 else pair.at[:, pl.ds(block * what.width, what.width)]
            act(pltpu.make_async_copy(source, blocks.at[buffer, i], semaphores.at[buffer]))

        jax.lax.fori_loop(0, runs.size[group], one, None)

    @pl.when((t == 0) & (j == 0) & (runs.groups[0] > 0))
    def _first():
        copies(0, 0, 0, lambda copy: copy.start())

    def one(g, _):
        group = first + g
        # Groups are counted once for each block of columns.
        buffer = (first * what.blocks + j * count + g) % 2
        more, again = g + 1 < count, j + 1 < what.blocks
        following = jnp.where(more, group + 1, jnp.where(again, first, first + count))
        block = jnp.where(more, j, jnp.where(again, j + 1, 0))

        @pl.when(following < runs.groups[0])
        def _next():
            copies(following, block, 1 - buffer, lambda copy: copy.start())

        copies(group, j, buffer, lambda copy: copy.wait())
        use(blocks.at[buffer], runs.size[group], runs.run[group])

    jax.lax.fori_loop(0, count, one, None)


def _shrink(form, ref, runs):
    """Each row's small product, scaled."""
    what, t, dtype = form.first, pl.program_id(0), form.base.dtype
    turned, out = ref["turned"], ref["small_out"]
    out[...] = jnp.zeros_like(out)
    turned[...] = jnp.zeros_like(turned)
    column = jax.lax.broadcasted_iota(jnp.int32, turned.shape, 1)

    def use(blocks, size, run):
        def add(found):
            """Choose among the runs' products, stacked."""
            own = turned[...]
            for i in range(found.shape[0] // what.rank):
                at = jnp.minimum(run + i, runs.at.shape[0] - 1)
                mine = (column >= runs.start[at]) & (column < runs.end[at]) & (i < size)
                own = jnp.where(mine, found[i * what.rank : (i + 1) * what.rank] * runs.scale[at], own)
            turned[...] = own

        @pl.when(size == 1)
        def _one():
            add(dot(blocks[0].astype(dtype), ref["x"][...], (1, 1)))

        @pl.when(size > 1)
        def _several():
            stacked = blocks[...].astype(dtype).reshape(block_sizes.RUNS * what.rank, what.width)
            add(dot(stacked, ref["x"][...], (1, 1)))

    _each_group(form, what, "first", ref, runs, use)

    @pl.when(runs.count[t] > 0)
    def _out():
        out[...] = turned[...].T.astype(dtype)


def _expand(form, ref, runs):
    """Add each row's run's part to the experts' product."""
    what, tile, total = form.second, form.base.tile, ref["total"]
    small = ref["small_out" if form.first is not None else "small"]

    def use(blocks, size, run):
        def one(i, _):
            z = small[...]
            for c in chunks(what.width, CHUNK):
                row = jax.lax.broadcasted_iota(jnp.int32, (tile, c.stop - c.start), 0)
                mine = (row >= runs.start[run + i]) & (row < runs.end[run + i])
                delta = dot(z, blocks[i, :, c].astype(form.base.dtype), (1, 0))
                total[:, c] = jnp.where(mine, total[:, c] + delta, total[:, c])

        jax.lax.fori_loop(0, size, one, None)

    _each_group(form, what, "second", ref, runs, use)
