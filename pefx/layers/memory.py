"""A memory for each sequence and layer that steers attention: queries, and what comes out (delta-mem, 2605.12357)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.delta_rule.api import Found, Tokens, delta_rule
from kernels.factors import Factors
from kernels.lora_matmul.api import expand, shrink
from kernels.rows import Rows
from pefx.batch import TokenBatch
from pefx.collectives import enter
from pefx.packing import COMMIT, FOLLOW, FRESH, GATHER


class MemoryFactors(NamedTuple):
    """One layer's numbers, in place in a bank of many slots and layers: slot s is row `offset + s`.

    `projections [G, 3MR, D]` make query, key and value of each of M states, state by state; `gates [G, MR, D]` and
    `bias [G, M, R]` its gates. What is read steers through `steer_query [G, MR, queries]` and `steer_output
    [G, MR, D]`, times `scales[s]`.
    """

    projections: Array
    gates: Array
    bias: Array
    steer_query: Array
    steer_output: Array
    scales: Float[Array, "N"]
    offset: Int32[Array, ""]

    def factors(self, name: str, side: str) -> Factors:
        """One of them as kernels read it, as factor a or b; unscaled."""
        found = Factors(None, None, jnp.ones_like(self.scales), self.offset)
        return found._replace(**{side: getattr(self, name)})


class Steering(NamedTuple):
    """What rows read of their memories, scaled, `[T, MR]`, and the factors through which it steers."""

    read: Array
    factors: MemoryFactors
    rows: Rows

    def query(self, y: Float[Array, "T Q"]) -> Float[Array, "T Q"]:
        """Queries, before norm and rotation."""
        return expand(y, enter(self.read), self.factors.factors("steer_query", "b"), self.rows)

    def output(self, y: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """What attention gives."""
        return expand(y, self.read, self.factors.factors("steer_output", "b"), self.rows)


def remember(
    x: Float[Array, "T D"],
    factors: MemoryFactors,
    rows: Rows,
    batch: TokenBatch,
    pool: Float[Array, "L P 2 M S R"],
    layer: Int32[Array, ""],
) -> tuple[Steering, Float[Array, "L P 2 M S R"], Float[Array, "T"]]:
    """What each token reads before it writes, the pool with what was written, and the mean gate of what a token wrote.

    `x` is what attention reads. `rows` are owned by slots.
    """
    assert batch.memory is not None
    owned = batch.layout()
    groups = _Groups.of(batch, owned.rows, owned.pages, pool.shape[1])
    flags, positions = jnp.asarray(batch.memory), jnp.asarray(batch.positions)
    kept = (positions % batch.page_size == batch.page_size - 1) & (positions >= 0)
    doing = Tokens(_projected(x, factors, rows), (flags & GATHER) > 0, (flags & COMMIT) > 0, kept)
    found = delta_rule(doing, groups.starts(pool[layer]), groups.follows, owned.rows)
    scales = factors.scales[jnp.maximum(rows.of_each(), 0)]
    read = (found.read.reshape(x.shape[0], -1) * scales[:, None]).astype(x.dtype)
    return Steering(read, factors, rows), groups.written(pool, layer, found), found.gates


def _projected(x: Float[Array, "T D"], factors: MemoryFactors, rows: Rows) -> Float[Array, "T M 4 R"]:
    """Query, key, value and gate of each state. Float32."""
    states, rank = factors.bias.shape[-2:]
    slots = factors.offset + jnp.maximum(rows.of_each(), 0)
    made = shrink(x, factors.factors("projections", "a"), rows).reshape(-1, states, 3, rank)
    gates = shrink(x, factors.factors("gates", "a"), rows).reshape(-1, states, 1, rank).astype(jnp.float32)
    gates = gates + factors.bias[slots].astype(jnp.float32)[:, :, None]
    return jnp.concatenate([made.astype(jnp.float32), gates], axis=2)


class _Groups(NamedTuple):
    """The groups of a batch's rows: the page that each begins with and whether that page holds how its sequence
    `begins`, or is empty (`fresh`); whether it follows the tile before; the pages that get the state after its last
    token, and after one that fills a page (past the end: none).
    """

    first: Int32[Array, "G"]
    begins: Array
    fresh: Array
    follows: Array
    last: Int32[Array, "G"]
    filled: Int32[Array, "G"]

    @classmethod
    def of(cls, batch: TokenBatch, rows: Rows, pages: Int32[Array, "S PS"], count: int) -> "_Groups":
        """`rows` are owned by sequences; the pool has `count` pages."""
        size, positions, flags = batch.page_size, jnp.asarray(batch.positions), jnp.asarray(batch.memory)
        start, end, flag, fills = [], [], [], []
        for r, _, m in rows.parts():
            own = positions[r].reshape(-1, m)
            start.append(own[:, 0])
            end.append(jnp.max(own, axis=1))
            flag.append(flags[r].reshape(-1, m)[:, 0])
            fills.append(jnp.max(jnp.where(own % size == size - 1, own, -1), axis=1))
        at, last, flag, fill = (jnp.concatenate(x) for x in (start, end, flag, fills))
        tiled = jnp.arange(at.shape[0]) >= rows.singles
        same = jnp.concatenate([jnp.zeros(1, bool), rows.owner[1:] == rows.owner[:-1]])
        same = same & tiled & jnp.concatenate([jnp.zeros(1, bool), tiled[:-1]]) & (at > 0)
        # What is between two tiles of a chain, padding, passes the state on.
        follows = same | (at < 0) | ((flag & FOLLOW) > 0)
        followed = jnp.concatenate([same[1:], jnp.zeros(1, bool)])

        def page(position: Array) -> Array:
            found = pages[jnp.maximum(rows.owner, 0), jnp.maximum(position, 0) // size]
            return jnp.where((position < 0) | (rows.owner < 0) | (found < 0), count, found)

        ends = jnp.where(followed | (last == fill), -1, last)
        return cls(page(jnp.maximum(at - 1, 0)), at == 0, (flag & FRESH) > 0, follows, page(ends), page(fill))

    def starts(self, pool: Float[Array, "P 2 M S R"]) -> Float[Array, "G M S R"]:
        """The state before each group's first token, where it does not follow another."""
        held = pool[jnp.minimum(self.first, pool.shape[0] - 1), jnp.where(self.begins, 0, 1)]
        return jnp.where(self.fresh[:, None, None, None], 0.0, held)

    def written(self, pool: Float[Array, "L P 2 M S R"], layer: Int32[Array, ""], found: Found) -> Array:
        """The pool with the states after each page's newest tokens."""
        pool = pool.at[layer, self.filled, 1].set(found.kept, mode="drop")
        return pool.at[layer, self.last, 1].set(found.last, mode="drop")
