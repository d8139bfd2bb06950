"""Gradients of the factors of (expert, slot) on a TPU: sums over a pair's own rows, in order.

The grid is the tiles. Rows are grouped, so a pair's subtiles follow each other: its sums stay in VMEM from its first
subtile to its last, possibly some tiles later, and are then copied to their place in the bank's gradient, which holds
zeros for all other pairs. A part is that of one subtile, whatever tile it is in: a sum depends on the pair's rows only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lora_matmul.pallas_blocks import CHUNK, Plan, call, chunks, dot
from kernels.tiles import TileMap


class Order(NamedTuple):
    """Of each subtile: its pair in the folded bank (-1: none), how many pairs came before, and whether it is its
    pair's first and last. `pairs [1]` is how many pairs there are in all.
    """

    pair: Any
    number: Any
    first: Any
    last: Any
    pairs: Any


@dataclass(frozen=True)
class Sums:
    """One kernel at one shape: tiles of `tile` rows in subtiles of `subtile`."""

    groups: int
    tile: int
    subtile: int
    steps: int = 1


def order_of(pair) -> Order:
    """From the pair of each subtile."""
    before = jnp.pad(pair[:-1], (1, 0), constant_values=-1)
    after = jnp.pad(pair[1:], (0, 1), constant_values=-1)
    first = ((pair >= 0) & (pair != before)).astype(jnp.int32)
    last = ((pair >= 0) & (pair != after)).astype(jnp.int32)
    # An absent subtile lies past a tile's pairs: one that goes on in the next tile has filled its own.
    number = jnp.cumsum(first, dtype=jnp.int32) - 1
    return Order(pair, number, first, last, jnp.sum(first, dtype=jnp.int32)[None])


def sums(name: str, tiles: TileMap, pair, small, rows, bank):
    """`sum of small[b]^T rows[b]` over each pair's places b, float32 `[P, R, W]` like the bank.

    `small [NB, R]` and `rows [NB, W]` have one type; `pair [NS]` is each subtile's, -1 for none.
    """
    form = Sums(tiles.group.shape[0], tiles.tile, tiles.subtile)
    _, rank, width = bank.shape
    last = jnp.maximum(tiles.live - 1, 0)[None]

    def block(width):
        """A tile's rows, or the last live one's."""
        return pl.BlockSpec((form.tile, width), lambda t, _j, last, *_: (jnp.minimum(t, last[0]), 0))

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    shape = jax.ShapeDtypeStruct(bank.shape, jnp.float32)
    operands = {
        "small": (small, block(rank)),
        "rows": (rows, block(width)),
        "before": (jnp.zeros(bank.shape, jnp.float32), anywhere),
    }
    scratch = {"sums": pltpu.VMEM((2, rank, width), jnp.float32), "sent": pltpu.SemaphoreType.DMA((2,))}
    plan = Plan((last, *order_of(pair)), operands, {"total": (shape, anywhere)}, scratch, {"before": "total"})
    moved = rows.size * rows.dtype.itemsize + small.size * small.dtype.itemsize
    cost = pl.CostEstimate(flops=2 * rows.size * rank, transcendentals=0, bytes_accessed=moved)
    return call(form, name, _body, plan, cost)["total"]


def _body(form, ref, _last, *order):
    """One tile."""
    order, t = Order(*order), pl.program_id(0)
    places = form.tile // form.subtile

    def copy(place):
        buffer = order.number[place] % 2
        return pltpu.make_async_copy(ref["sums"].at[buffer], ref["total"].at[order.pair[place]], ref["sent"].at[buffer])

    def one(s, _):
        place = t * places + s
        pl.when(order.pair[place] >= 0)(lambda: _subtile(form, ref, order, place, copy))

    jax.lax.fori_loop(0, places, one, None)

    @pl.when(t == form.groups - 1)
    def _end():
        for buffer in range(2):

            @pl.when(buffer < order.pairs[0])
            def _wait(buffer=buffer):
                pltpu.make_async_copy(ref["sums"].at[buffer], ref["total"].at[0], ref["sent"].at[buffer]).wait()


def _subtile(form, ref, order, place, copy):
    """Add one subtile's part to its pair's sums; after the pair's last, send them off."""
    number, sums = order.number[place], ref["sums"]
    buffer, first = number % 2, order.first[place] > 0

    @pl.when(first & (number >= 2))
    def _free():  # the pair before last's, sent from this buffer
        copy(place).wait()

    start = pl.multiple_of(place % (form.tile // form.subtile) * form.subtile, form.subtile)
    own = pl.ds(start, form.subtile)
    small = ref["small"][own]
    for c in chunks(sums.shape[2], CHUNK):
        part = dot(small, ref["rows"][own, c], (0, 0))
        sums[buffer, :, c] = jnp.where(first, part, sums[buffer, :, c] + part)

    @pl.when(order.last[place] > 0)
    def _send():
        copy(place).start()
