"""What shards tell each other, on eight virtual devices; nothing where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pefx import collectives as c
from pefx.compiler import jit
from pefx.config import MeshConfig
from pefx.mesh import DATA, EXPERT, MODEL, by_row, of_base, on_mesh, sharded

MESH = MeshConfig(2, 2, 2)


def _on_shards(function, x, out):
    with on_mesh(MESH):
        return np.asarray(jit(sharded(function, (by_row,), lambda _: out))(x))


def test_alone_nothing_is_done():
    x = jnp.arange(4.0)
    ids = jnp.arange(4, dtype=jnp.int32)
    for function in (c.enter, c.leave, c.over_rows, c.over_model, c.of_group, c.of_own):
        assert function(x) is x
    assert c.whole_width(x[None]).shape == (1, 4)
    assert c.all_experts(x[None]).shape == (1, 4)
    np.testing.assert_array_equal(c.group_slots(ids, 4), ids)
    assert [c.size(axis) for axis in (DATA, EXPERT, MODEL)] == [1, 1, 1]
    assert int(c.index(DATA)) == 0


def test_slots_of_a_group_are_counted_in_one_row():
    slots = jnp.array([0, -1, 2, 1, 1, 0, 2, 5], jnp.int32)  # two slots a shard: 2 and 5 are past the end
    found = _on_shards(lambda s: c.group_slots(s, 2), slots, P((DATA,)))
    np.testing.assert_array_equal(found, [0, -1, 4, 3, 1, 0, 4, 4])


def test_own_part_of_what_a_group_has():
    x = jnp.arange(8.0)
    back = _on_shards(lambda x: c.of_own(c.of_group(x)), x, P((DATA, EXPERT)))
    np.testing.assert_array_equal(back, x)


def test_a_vocabulary_is_counted_within_a_shard():
    ids = jnp.array([0, 3, 4, 7, 0, 3, 4, 7], jnp.int32)

    def part(ids):
        local, inside = c.own_part(ids, 4)
        return c.over_model(jnp.where(inside, local + 4 * c.index(MODEL), 0))

    np.testing.assert_array_equal(_on_shards(part, ids, P((DATA, EXPERT))), ids)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MESH], ids=["alone", "mesh"])
def test_gradients_of_a_divided_block(mesh):
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((8, 6), (6, 4), (4, 6)))

    def block(x, a, b):
        def loss(x, a, b):
            first = c.index(MODEL) * (4 // c.size(MODEL))
            mine = [jax.lax.dynamic_slice_in_dim(w, first, 4 // c.size(MODEL), axis) for w, axis in ((a, 1), (b, 0))]
            return jnp.sum(jnp.sin(c.leave(jnp.tanh(c.enter(x) @ mine[0]) @ mine[1])))

        return jax.grad(loss)(x, a, b)

    with on_mesh(mesh):
        got = jit(sharded(block, (by_row, of_base, of_base), lambda specs: specs[0]))(x, a, b)
    want = jax.grad(lambda x: jnp.sum(jnp.sin(jnp.tanh(x @ a) @ b)))(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_rows_that_are_divided_over_a_width_come_back_with_their_gradients():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)

    def gradient(x):
        def loss(x):
            own = c.own_rows(x)
            assert own.shape == (2, 3)
            return jnp.sum(jnp.sin(c.all_rows(own * 2, x.shape[0])))

        return jax.value_and_grad(loss)(x)[1]

    got = _on_shards(gradient, x, P((DATA, EXPERT)))
    np.testing.assert_allclose(got, 2 * np.cos(2 * x), rtol=1e-6)


def test_rows_that_cannot_be_divided_stay():
    x = np.ones((12, 3), np.float32)  # three a shard
    np.testing.assert_array_equal(_on_shards(lambda x: c.all_rows(c.own_rows(x), 3), x, P((DATA, EXPERT))), x)
