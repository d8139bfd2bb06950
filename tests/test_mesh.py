"""The mesh of data shards: who gets how many, what lies where, and that a mesh of one is none."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pefx.compiler import jit
from pefx.errors import PefxError
from pefx.mesh import DATA, by_page, by_row, by_slot, data_shards, on_mesh, over_shards, place, sharded, spec, whole


def test_shards_are_as_many_as_asked_or_as_there_is_work_for():
    cores = os.cpu_count() or 1
    assert data_shards(3, 1) == 3
    assert data_shards(0, 1) == 1
    assert data_shards(0, 100) == min(cores, len(jax.devices()))
    with pytest.raises(PefxError, match=r"'mesh.data' is 9, but there are 8 devices"):
        data_shards(9, 100)


def test_what_lies_where():
    tree = {"factor": jnp.zeros((2, 4, 3)), "scale": jnp.zeros(4)}
    assert spec(by_slot, tree) == {"factor": P(None, DATA), "scale": P(DATA)}
    assert spec(by_row, tree) == {"factor": P(DATA), "scale": P(DATA)}
    assert spec(by_page, tree["factor"]) == P(None, DATA)
    assert spec(whole, tree) == {"factor": P(), "scale": P()}


def _count(x, tree):
    return x.shape[0] + 0 * x, over_shards(jnp.sum(x)), tree


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_function_sees_its_shards_part(shards):
    run = jit(sharded(_count, (by_row, by_slot), lambda specs: (specs[0], P(), specs[1])))
    x, tree = np.arange(8, dtype=np.float32), {"a": np.arange(24, dtype=np.float32).reshape(2, 4, 3)}
    with on_mesh(shards):
        sizes, total, back = run(place(by_row, x), place(by_slot, tree))
        np.testing.assert_array_equal(sizes, np.full(8, 8 // shards))
        assert float(total) == x.sum()
        np.testing.assert_array_equal(back["a"], tree["a"])
        assert len(place(by_slot, tree)["a"].sharding.device_set if shards > 1 else [0]) == shards
