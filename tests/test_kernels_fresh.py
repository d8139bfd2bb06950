"""Zeros of their own: equal to zeros whatever they hang on, and no constant that a compiler could share."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.fresh import fresh


@pytest.mark.parametrize("value", [1.5, 0.0, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_zeros_of_the_type_they_hang_on(value, dtype):
    zeros = jax.jit(lambda like: fresh((3, 2), like))(jnp.full((4, 1), value, dtype))
    assert zeros.dtype == dtype
    np.testing.assert_array_equal(zeros.astype(jnp.float32), np.zeros((3, 2)))


def test_loops_that_write_them_copy_nothing():
    def write(make):
        def loop(x):
            return jax.lax.fori_loop(0, 8, lambda i, out: out.at[i].set(x[i] * 2), make(x))

        return jax.jit(lambda a, b: (loop(a), loop(b)))

    def copies(make):
        text = write(make).lower(jnp.ones((8, 999)), jnp.ones((8, 999))).compile().as_text()
        return len(re.findall(r"= f32\[8,999\]\S* copy\(", text))

    assert copies(lambda x: jnp.zeros(x.shape)) >= 2
    assert copies(lambda x: fresh(x.shape, x)) == 0
