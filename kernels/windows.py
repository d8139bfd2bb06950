"""Rows in the order of their (group, subgroup), without gaps, and windows of a few rows of one pair each over them.

Where a pair has many rows this beats tiles (`kernels.tiles`): nothing is padded. A window may reach past its pair's
rows into the next pair's; what it writes there is written again by theirs, since windows are taken in order. Each pair
begins a window, so that sums over windows depend on the pair's own rows alone.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from kernels.tiles import sums_before


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """`M` rows in a buffer of `NB = M + size` places, and windows of `size` of them.

    `source[b]` is the row at place b (M for none), `place[m]` the place of row m (NB for none). Window i is places
    `start[i] ..`, of which `length[i]` rows are its own: rows of `group[i]` and `subgroup[i]`. `live` windows come first.
    """

    source: Int32[Array, "NB"]
    place: Int32[Array, "M"]
    start: Int32[Array, "W"]
    length: Int32[Array, "W"]
    group: Int32[Array, "W"]
    subgroup: Int32[Array, "W"]
    live: Int32[Array, ""]
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
    count = first[1:] - first[:-1]
    taken = (-(-count // size)).reshape(groups, subgroups)  # windows of each pair
    of_group = jnp.sum(taken, axis=1, dtype=jnp.int32)
    before = (sums_before(of_group)[:, None] + sums_before(taken)).reshape(-1)
    live = jnp.sum(of_group, dtype=jnp.int32)
    window = jnp.arange(rows // size + min(rows, pairs), dtype=jnp.int32)
    # The last pair that begins at or before a window: pairs without rows begin where the next one does.
    pair = jnp.searchsorted(before, window, side="right").astype(jnp.int32) - 1
    skipped = (window - before[pair]) * size
    length = jnp.where(window < live, jnp.minimum(count[pair] - skipped, size), 0)
    return Windows(source, place, first[pair] + skipped, length, pair // subgroups, pair % subgroups, live, size)
