"""Root-mean-square norm against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.layers.norm import rms_norm


@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 5), (1, 33)])
def test_it_is_its_formula_over_the_last_axis(shape):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape).astype(np.float32) * 3, rng.normal(size=shape[-1]).astype(np.float32)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * weight
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(weight), 0.1), want, rtol=1e-6, atol=1e-6)


def test_bfloat16_is_normed_in_float32_and_rounded_before_the_weight():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 65)), jnp.bfloat16)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=65), jnp.bfloat16)
    wide = np.asarray(x, np.float32)
    normed = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)
    want = jnp.asarray(normed, jnp.bfloat16) * weight[None]
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == jnp.bfloat16
    # One rounding apart at most, where the float32 norms round to neighbours.
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=2**-7)


def test_zeros_stay_zeros():
    np.testing.assert_array_equal(rms_norm(jnp.zeros((2, 4)), jnp.ones(4), 1e-6), np.zeros((2, 4)))
