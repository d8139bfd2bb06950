"""A slot's part of every array of a tree goes out and in, whichever axis it has; past the end nothing does."""

import jax
import jax.numpy as jnp
import numpy as np

from pefx.adapters.slots import is_split, joined, parted, put_slot, put_slots, slot_at, take_slots

TREE = {
    "own": {"a": jnp.arange(2 * 4 * 3 * 5, dtype=jnp.float32).reshape(2, 4, 3, 5)},
    "experts": {"a": jnp.arange(2 * 4 * 6 * 3 * 5, dtype=jnp.float32).reshape(2, 4, 6, 3, 5)},
    "scales": jnp.arange(4, dtype=jnp.float32),
}


def same(left, right) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_one_slot_of_every_array():
    part = slot_at(TREE, jnp.int32(2))
    assert [x.shape for x in jax.tree.leaves(part)] == [(2, 1, 6, 3, 5), (2, 1, 3, 5), (1,)]
    assert float(part["scales"][0]) == 2
    assert same(put_slot(TREE, jnp.int32(2), part), TREE)
    moved = put_slot(TREE, jnp.int32(1), part)
    np.testing.assert_array_equal(moved["own"]["a"][:, 1], TREE["own"]["a"][:, 2])
    np.testing.assert_array_equal(moved["own"]["a"][:, 0], TREE["own"]["a"][:, 0])


def test_what_is_past_the_end_changes_nothing():
    slots = jnp.asarray([3, 4], jnp.int32)
    part = jax.tree.map(lambda x: x + 1, take_slots(TREE, slots))
    after = put_slots(TREE, slots, part)
    np.testing.assert_array_equal(after["scales"], [0, 1, 2, 4])
    np.testing.assert_array_equal(after["experts"]["a"][:, :3], TREE["experts"]["a"][:, :3])
    assert put_slots({}, slots, {}) == {}


def test_what_lies_with_the_experts_is_taken_apart_and_joined():
    own, with_experts = parted(TREE)
    assert own["experts"]["a"] is None
    assert with_experts["own"]["a"] is None
    assert same(joined(own, with_experts), TREE)
    assert [is_split(x) for x in jax.tree.leaves(TREE)] == [True, False, False]
