"""A projection with every row's own adapter; rows without one keep the base's bits."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.factors import Factors
from kernels.rows import rows_of
from pefx.compiler import jit
from pefx.layers.linear import adapted, dot, linear

SINGLES, TILE, ROWS, D, F, RANK, SLOTS = 4, 2, 12, 9, 5, 8, 4
rng = np.random.default_rng(0)
X, W = rng.normal(size=(ROWS, D)).astype(np.float32), rng.normal(size=(F, D)).astype(np.float32)
A = rng.normal(size=(2 * SLOTS, RANK, D)).astype(np.float32)
B = rng.normal(size=(2 * SLOTS, RANK, F)).astype(np.float32)
SCALES = np.array([0.5, 1, 2, 4], np.float32)


@jit
def _adapted(x, slots, offset):
    return linear(
        x,
        jnp.asarray(W),
        Factors(jnp.asarray(A), jnp.asarray(B), jnp.asarray(SCALES), offset),
        rows_of(slots, SINGLES, TILE),
    )


@jit
def _bare(x):
    return linear(x, jnp.asarray(W), None, None)


@settings(max_examples=20)
@given(st.lists(st.integers(-1, SLOTS - 1), min_size=8, max_size=8), st.sampled_from([0, SLOTS]))
def test_each_row_has_its_own_slots_delta(owners, offset):
    slots = np.array([*owners[:SINGLES], *np.repeat(owners[SINGLES:], TILE)], np.int32)
    got, base = np.asarray(_adapted(X, slots, np.int32(offset))), np.asarray(_bare(X))
    for row, slot in enumerate(slots):
        delta = SCALES[slot] * (X[row] @ A[offset + slot].T) @ B[offset + slot]
        if slot < 0:
            np.testing.assert_array_equal(got[row], base[row])
        else:
            np.testing.assert_allclose(got[row], X[row] @ W.T + delta, rtol=1e-4, atol=1e-4)


def test_the_base_is_accumulated_in_float32():
    x, w = jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.bfloat16)
    y = dot(x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.asarray(x, np.float32) @ np.asarray(w, np.float32).T, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_added_to_the_rounded_product():
    x, w = jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.bfloat16)
    slots = np.array([0, -1, 2, 3] + 4 * [1] + 4 * [-1], np.int32)
    factors = Factors(jnp.asarray(A), jnp.asarray(B), jnp.asarray(SCALES), jnp.int32(0))
    base, rows = linear(x, w, None, None), rows_of(jnp.asarray(slots), SINGLES, TILE)
    assert base.dtype == jnp.bfloat16
    np.testing.assert_array_equal(base, dot(x, w).astype(jnp.bfloat16))
    got = linear(x, w, factors, rows)
    np.testing.assert_array_equal(got, adapted(base, x, factors, rows))
    np.testing.assert_array_equal(got[slots < 0], base[slots < 0])
    assert adapted(dot(x, w), x, factors, rows).dtype == jnp.float32


def test_without_factors_or_rows_it_is_the_base():
    np.testing.assert_allclose(_bare(X), X @ W.T, rtol=1e-5, atol=1e-5)
    rows = rows_of(jnp.zeros(ROWS, jnp.int32), SINGLES, TILE)
    np.testing.assert_array_equal(
        linear(jnp.asarray(X), jnp.asarray(W), None, rows), dot(jnp.asarray(X), jnp.asarray(W))
    )


def test_a_bias_is_added_before_rounding():
    rng = np.random.default_rng(5)
    x, w = (jnp.asarray(v.astype(np.float32), jnp.bfloat16) for v in (X, W))
    bias = jnp.asarray(rng.normal(size=W.shape[0]), jnp.bfloat16)
    want = (dot(x, w) + bias.astype(jnp.float32)[None]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(linear(x, w, None, None, bias), want)
