"""Slots on a mesh: which axes of a tree of slots are divided, and one slot's part of all of it, out and in.

Only the shard that has the slot reads or writes it. No other part of the tree moves: a bank need not fit on one device.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Int32

from pefx.adapters.sites import width_axis
from pefx.adapters.slots import is_split, put_slot, slot_at, slot_axis
from pefx.batch import Array
from pefx.collectives import index, over_data, over_rows, size
from pefx.compiler import jit
from pefx.mesh import DATA, EXPERT, of_base, sharded


def by_slot(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Logical axes of a bank, and of what stands beside it slot by slot: factors `[L, N, (E,) R, width]`, numbers [N].

    A factor of one expert lies with the expert; its slots are those of all shards that send rows to it.
    """
    if x.ndim == 1:
        return ("group_slots",)
    site, factor = (key.key for key in path[-2:])
    if is_split(x):
        return ("layers", "group_slots", "experts", "rank", width_axis(site, factor))
    return ("layers", "slots", "rank", width_axis(site, factor))


def of_one(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Logical axes of what goes into one slot: as a bank's, but the slot axis, of size one, is not divided."""
    return tuple(None if name in ("slots", "group_slots") else name for name in by_slot(path, x))


@jit
def read_slot(tree: Any, slot: Int32[Array, ""]) -> Any:
    """The part of `slot`, counted over all shards, of every array, its axis kept; the same on all shards of rows."""
    return sharded(_read_shard, (by_slot, of_base), lambda specs: _undivided(specs[0]))(tree, slot)


@partial(jit, donate_argnums=0)
def write_slot(tree: Any, slot: Int32[Array, ""], part: Any) -> Any:
    """The tree with the part of `slot`, counted over all shards, replaced in every array; the old tree is donated."""
    return sharded(_write_shard, (by_slot, of_base, of_one), lambda specs: specs[0])(tree, slot, part)


def _undivided(specs: Any) -> Any:
    """Partition specs of parts from those of a whole tree."""

    def one(found: P) -> P:
        return P(None) if len(found) == 1 else P(found[0], None, *found[2:])

    return jax.tree.map(one, specs, is_leaf=lambda x: isinstance(x, P))


def _on_group(x: Array) -> bool:
    """Whether its slots are those of all shards of an expert axis."""
    return x.ndim == 1 or is_split(x)


def _here(x: Array, slot: Int32[Array, ""]) -> tuple[Int32[Array, ""], Array]:
    """The place of `slot` on this shard, and whether it is here."""
    count, shard = x.shape[slot_axis(x)], index(DATA)
    if not _on_group(x):
        shard = shard * size(EXPERT) + index(EXPERT)
    local = slot - shard * count
    return jnp.clip(local, 0, count - 1), (local >= 0) & (local < count)


def _read_shard(tree: Any, slot: Int32[Array, ""]) -> Any:
    def one(x: Array) -> Array:
        at, here = _here(x, slot)
        part = slot_at(x, at)
        # Bits, since a sum would make the negative zeros of a number positive.
        bits = jax.lax.bitcast_convert_type(part, jnp.dtype(f"uint{8 * part.dtype.itemsize}"))
        bits = jnp.where(here, bits, 0).astype(jnp.uint32)
        bits = (over_data if _on_group(x) else over_rows)(bits).astype(f"uint{8 * part.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(bits, part.dtype)

    return jax.tree.map(one, tree)


def _write_shard(tree: Any, slot: Int32[Array, ""], part: Any) -> Any:
    def one(x: Array, new: Array) -> Array:
        at, here = _here(x, slot)
        return put_slot(x, at, jnp.where(here, new, slot_at(x, at)))

    return jax.tree.map(one, tree, part)
