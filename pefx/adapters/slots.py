"""Trees with a slot axis: a slot's part of every array, taken out or put in place; what lies with the experts."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int32

from kernels.fresh import fresh
from pefx.batch import Array


def is_split(factor: Any) -> bool:
    """Whether each expert has its own."""
    return factor.ndim == 5


def parted(tree: Any) -> tuple[Any, Any]:
    """What of a tree of factors lies with the slots' rows, and what with the experts; None in place of the rest."""
    return jax.tree.map(lambda x: None if is_split(x) else x, tree), jax.tree.map(
        lambda x: x if is_split(x) else None, tree
    )


def joined(own: Any, with_experts: Any) -> Any:
    """The tree that `parted` took apart."""
    return jax.tree.map(lambda x, y: y if x is None else x, own, with_experts, is_leaf=lambda x: x is None)


def slot_axis(x: Any) -> int:
    """Slots are behind the layers, or first in an array of one number a slot."""
    return min(x.ndim - 1, 1)


def slot_at(tree: Any, slot: Int32[Array, ""]) -> Any:
    """The part of one slot in every array, its axis kept; past the end, the last slot's."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1, slot_axis(x)), tree)


def put_slot(tree: Any, slot: Int32[Array, ""], part: Any) -> Any:
    """Replace the part of one slot in every array."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, slot, slot_axis(x)), tree, part)


def take_slots(tree: Any, slots: Int32[Array, "A"]) -> Any:
    """A copy of these slots of every array; past the end, of the last. A slot at a time: a gather is slower on CPU."""

    def one(i, out):
        return put_slot(out, i, slot_at(tree, slots[i]))

    def room(x: Array) -> Array:
        axis = slot_axis(x)
        return fresh((*x.shape[:axis], slots.shape[0], *x.shape[axis + 1 :]), x)

    return jax.lax.fori_loop(0, slots.shape[0], one, jax.tree.map(room, tree))


def put_slots(tree: Any, slots: Int32[Array, "A"], parts: Any) -> Any:
    """Replace these slots of every array, in place where the tree is donated; past the end, nothing."""

    leaves = jax.tree.leaves(tree)
    if not leaves:
        return tree
    count = leaves[0].shape[slot_axis(leaves[0])]

    def one(i, tree):
        part, live = slot_at(parts, i), slots[i] < count
        kept = jax.tree.map(lambda x, y: jnp.where(live, x, y), part, slot_at(tree, slots[i]))
        return put_slot(tree, slots[i], kept)

    return jax.lax.fori_loop(0, slots.shape[0], one, tree)
