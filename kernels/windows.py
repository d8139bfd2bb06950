"""Rows in the order of their (group, subgroup), without gaps, and windows of a few rows over them.

Where groups have many rows this beats tiles (`kernels.tiles`): nothing is padded. A window may reach past the rows of
its own into the next one's; what it writes there is written again by that one, since windows are taken in order.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from kernels.tiles import sums_before


class Cuts(NamedTuple):
    """Windows of one key each: places `start[i] ..`, of which `length[i]` rows are its own; `live` of them come first.

    A key is a group, or a pair of `group[i]` and `subgroup[i]`. Each begins a window, so that sums over its windows
    depend on its own rows alone.
    """

    start: Int32[Array, "W"]
    length: Int32[Array, "W"]
    group: Int32[Array, "W"]
    subgroup: Int32[Array, "W"]
    live: Int32[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """`M` rows in a buffer of `NB = M + size` places, and windows of `size` of them, cut by group and by pair.

    `source[b]` is the row at place b (M for none), `place[m]` the place of row m (NB for none).
    """

    source: Int32[Array, "NB"]
    place: Int32[Array, "M"]
    groups: Cuts
    pairs: Cuts
    size: int = field(metadata={"static": True})


def windows(
    group: Int32[Array, "M"], subgroup: Int32[Array, "M"], *, groups: int, subgroups: int, size: int
) -> Windows:
    """Windows over `M` rows of `group` in [-1, groups) (-1: left out) and `subgroup` in [0, subgroups)."""
    rows, pairs = group.shape[0], groups * subgroups
    key = jnp.where(group < 0, pairs, group * subgroups + subgroup)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    ordered = key[order]
    dead = ordered >= pairs
    source = jnp.concatenate([jnp.where(dead, rows, order), jnp.full(size, rows, jnp.int32)])
    own = jnp.where(dead, rows + size, jnp.arange(rows, dtype=jnp.int32))
    place = jnp.zeros(rows, jnp.int32).at[order].set(own, unique_indices=True)
    first = jnp.searchsorted(ordered, jnp.arange(pairs + 1, dtype=jnp.int32)).astype(jnp.int32)
    by_group, by_pair = _cut(first[::subgroups], 1, rows, size), _cut(first, subgroups, rows, size)
    return Windows(source, place, by_group, by_pair, size)


def _cut(first: Int32[Array, "Kp"], subgroups: int, rows: int, size: int) -> Cuts:
    """Windows over keys whose rows begin at `first`."""
    keys = first.shape[0] - 1
    count = first[1:] - first[:-1]
    taken = -(-count // size)  # windows of each key
    before = sums_before(taken)
    live = before[-1] + taken[-1]
    window = jnp.arange(rows // size + min(rows, keys), dtype=jnp.int32)
    # The last key that begins at or before a window: keys without rows begin where the next one does.
    key = jnp.searchsorted(before, window, side="right").astype(jnp.int32) - 1
    skipped = (window - before[key]) * size
    length = jnp.where(window < live, jnp.minimum(count[key] - skipped, size), 0)
    return Cuts(first[key] + skipped, length, key // subgroups, key % subgroups, live)
