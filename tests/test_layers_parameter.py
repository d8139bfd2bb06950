"""Parameters: named axes, wanted spread and type, and plain pytree leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pefx.layers.parameter import ones, weight, zeros


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_is_normal_with_its_deviation(dtype):
    made = weight(nnx.Rngs(0), (64, 65), ("embed", "mlp"), 0.02, dtype)
    value = np.asarray(made[...], np.float32)
    assert made.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(value.std(), 0.02, rtol=0.05)
    assert abs(value.mean()) < 0.002
    assert made.get_metadata()["out_sharding"] == ("embed", "mlp")


def test_draws_follow_the_seed_and_the_order():
    rngs = nnx.Rngs(3)
    first, second = (weight(rngs, (5,), ("embed",), 1.0, "float32")[...] for _ in range(2))
    assert (np.asarray(first) != np.asarray(second)).all()
    np.testing.assert_array_equal(first, weight(nnx.Rngs(3), (5,), ("embed",), 1.0, "float32")[...])


def test_every_dimension_has_a_name():
    with pytest.raises(ValueError, match=r"1 axis names for shape \(2, 3\)"):
        weight(nnx.Rngs(0), (2, 3), ("embed",), 1.0, "float32")


def test_ones_are_ones_and_parameters_are_leaves():
    made = ones((2, 3), ("layers", "embed"), "bfloat16")
    np.testing.assert_array_equal(np.asarray(made[...], np.float32), np.ones((2, 3)))
    assert len(jax.tree.leaves(made)) == 1
    assert made.get_metadata()["out_sharding"] == ("layers", "embed")


def test_zeros_are_zeros():
    made = zeros((2, 3), ("layers", "heads"), "bfloat16")
    np.testing.assert_array_equal(np.asarray(made[...], np.float32), np.zeros((2, 3)))
    assert made.get_metadata()["out_sharding"] == ("layers", "heads")
