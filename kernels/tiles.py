"""Rows grouped by key and padded to whole tiles: the one grouping all mixed matmuls of a step share.

Rows are sorted by (group, subgroup), stably. Each subgroup starts on a subtile, each group on a tile, so that what a
tile holds depends on that group's own rows alone. Rows of group -1 get no place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TileMap:
    """`M` rows placed in a buffer of `NB = NT * tile = NS * subtile` places.

    `source[b]` is the row at place b, or M for none; `place[m]` the place of row m, or NB for none. `group[t]` is the
    group of tile t and `subgroup[s]` the subgroup of subtile s, both -1 where dead. Live tiles come first.
    """

    source: Int32[Array, "NB"]
    place: Int32[Array, "M"]
    group: Int32[Array, "NT"]
    subgroup: Int32[Array, "NS"]
    live: Int32[Array, ""]

    @property
    def tile(self) -> int:
        return self.source.shape[0] // self.group.shape[0]

    @property
    def subtile(self) -> int:
        return self.source.shape[0] // self.subgroup.shape[0]


def tile_map(
    group: Int32[Array, "M"],
    subgroup: Int32[Array, "M"] | None = None,
    *,
    groups: int,
    subgroups: int = 1,
    tile: int,
    subtile: int | None = None,
) -> TileMap:
    """Group `M` rows by `group` in [-1, groups) and `subgroup` in [0, subgroups); `subtile` divides `tile`.

    The buffer is as large as the worst case needs; loops run over `live` tiles only.
    """
    subtile = subtile or tile
    rows = group.shape[0]
    pairs = groups * subgroups
    places = rows + min(rows, pairs) * (subtile - 1) + (min(rows, groups) * (tile - subtile))
    tiles = -(-places // tile)
    size = tiles * tile
    key = group if subgroup is None else group * subgroups + subgroup
    key = jnp.where(group < 0, pairs, key)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    ordered = key[order]
    first = jnp.searchsorted(ordered, jnp.arange(pairs + 1, dtype=jnp.int32)).astype(jnp.int32)
    padded = (-(-(first[1:] - first[:-1]) // subtile) * subtile).reshape(groups, subgroups)  # places of each pair
    group_size = -(-jnp.sum(padded, axis=1, dtype=jnp.int32) // tile) * tile
    group_start = sums_before(group_size)
    start = (group_start[:, None] + sums_before(padded)).reshape(-1)
    dead = ordered >= pairs
    known = jnp.minimum(ordered, pairs - 1)
    place_ordered = jnp.where(dead, size, start[known] + jnp.arange(rows, dtype=jnp.int32) - first[known])
    place = jnp.zeros(rows, jnp.int32).at[order].set(place_ordered, unique_indices=True)
    source = jnp.full(size, rows, jnp.int32).at[place_ordered].set(order, mode="drop")
    row_group = jnp.where(dead, -1, known // subgroups)
    row_subgroup = jnp.where(dead, -1, known % subgroups)
    tile_group = jnp.full(tiles, -1, jnp.int32).at[place_ordered // tile].set(row_group, mode="drop")
    subtile_group = jnp.full(size // subtile, -1, jnp.int32).at[place_ordered // subtile].set(row_subgroup, mode="drop")
    return TileMap(source, place, tile_group, subtile_group, (group_start[-1] + group_size[-1]) // tile)


def sums_before(x: Int32[Array, "*rows n"]) -> Int32[Array, "*rows n"]:
    """What stands before each place, added up, along the last axis (an exclusive cumulative sum).

    As a masked sum: XLA:CPU takes far longer over `cumsum` at such sizes.
    """
    place = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.sum(jnp.where(place[None] < place[:, None], x[..., None, :], 0), axis=-1, dtype=jnp.int32)


@runtime_checkable
class Placed(Protocol):
    """Rows in a buffer: `source[b]` is the row at place b, past the end for none; `place[m]` the place of row m."""

    @property
    def source(self) -> Int32[Array, "NB"]: ...

    @property
    def place(self) -> Int32[Array, "M"]: ...


def take_rows(x: Array, index: Array) -> Array:
    """Rows `x[index]`, zeros where the index is past the end."""
    padded = jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])
    return padded.at[index].get(mode="promise_in_bounds")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(x: Float[Array, "T D"], tiles: Placed, copies: int) -> Float[Array, "NB D"]:
    """Bring each token's row to its `copies` places; row `t * copies + j` of the map is copy j of token t."""
    return take_rows(x, tiles.source // copies)


def _dispatch_forward(x, tiles, copies):
    return dispatch(x, tiles, copies), (tiles,)


def _dispatch_backward(copies, residuals, cotangent):
    (tiles,) = residuals
    back = take_rows(cotangent, tiles.place).reshape(-1, copies, cotangent.shape[-1])
    return in_order(back.astype(jnp.float32)).astype(cotangent.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(buffer: Float[Array, "NB D"], gates: Float[Array, "T k"], tiles: Placed) -> Float[Array, "T D"]:
    """Return rows to their tokens and add the `k` copies, weighted by float32 gates, in order; float32."""
    back = take_rows(buffer, tiles.place).reshape(*gates.shape, -1)
    return in_order(back.astype(jnp.float32) * gates[..., None])


def _combine_forward(buffer, gates, tiles):
    return combine(buffer, gates, tiles), (buffer, gates, tiles)


def _combine_backward(residuals, cotangent):
    buffer, gates, tiles = residuals
    tokens, copies = gates.shape
    back = take_rows(buffer, tiles.place).reshape(tokens, copies, -1).astype(jnp.float32)
    gate = take_rows(gates.reshape(-1), tiles.source)
    to_buffer = take_rows(cotangent, tiles.source // copies) * gate[:, None]
    to_gates = jnp.sum(back * cotangent[:, None], axis=-1)
    return to_buffer.astype(buffer.dtype), to_gates, None


combine.defvjp(_combine_forward, _combine_backward)


def in_order(copies: Float[Array, "T k D"]) -> Float[Array, "T D"]:
    """Sum over axis 1, first to last: a fixed order that no sharding or batch changes."""
    total = copies[:, 0]
    for j in range(1, copies.shape[1]):
        total = total + copies[:, j]
    return total


def sum_by_group(parts: Sequence[Float[Array, "NS ..."]], index: Int32[Array, "NS"], groups: int) -> list[Array]:
    """Sum the parts of each group, in order; parts of index -1 are left out. Float32 `[groups, ...]` for each array.

    The first parts of all groups are added at once, then the second ones, and so on. What a group gets past its own
    last part is zero, and no sum that began at zero is changed by a bit by a zero: a group's sum is a function of its
    own parts.
    """
    key = jnp.where(index < 0, groups, index)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    each = jnp.arange(groups, dtype=jnp.int32)[:, None]
    first = jnp.sum(key[None] < each, axis=1, dtype=jnp.int32)
    count = jnp.sum(key[None] == each, axis=1, dtype=jnp.int32)

    def add(turn, totals):
        at = order[jnp.minimum(first + turn, index.shape[0] - 1)]

        def one(total, part):
            own = (turn < count).reshape(-1, *(1,) * (part.ndim - 1))
            return total + jnp.where(own, part[at], 0.0)

        return [one(total, part) for total, part in zip(totals, parts, strict=True)]

    start = [jnp.zeros((groups, *part.shape[1:]), jnp.float32) for part in parts]
    return jax.lax.fori_loop(0, jnp.max(count), add, start)
