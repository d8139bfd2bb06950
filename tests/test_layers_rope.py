"""Rotary embedding: pairs rotated by position, so that scores depend on distance."""

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.layers.rope import angles, rotate

SIZE, THETA = 6, 100.0


def rotated(x: np.ndarray, positions) -> np.ndarray:
    turn = angles(jnp.asarray(positions, jnp.int32), SIZE, THETA)
    return np.asarray(rotate(jnp.asarray(x, jnp.float32), *turn))


def test_each_pair_turns_by_its_angle():
    x = np.random.default_rng(0).normal(size=(4, 2, SIZE))
    positions = np.array([0, 1, 7, 500])
    got = rotated(x, positions)
    for t, position in enumerate(positions):
        for i in range(SIZE // 2):
            turn = np.exp(1j * position * THETA ** (-2 * i / SIZE))
            want = (x[t, :, i] + 1j * x[t, :, i + SIZE // 2]) * turn
            np.testing.assert_allclose(got[t, :, i], want.real, atol=2e-4)
            np.testing.assert_allclose(got[t, :, i + SIZE // 2], want.imag, atol=2e-4)
    np.testing.assert_allclose(got[0], x[0], rtol=1e-6)


@pytest.mark.parametrize("shift", [1, 100])
def test_scores_depend_on_distance_alone(shift):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(1, 1, SIZE)), rng.normal(size=(1, 1, SIZE))
    near = (rotated(q, [9]) * rotated(k, [4])).sum()
    far = (rotated(q, [9 + shift]) * rotated(k, [4 + shift])).sum()
    np.testing.assert_allclose(near, far, rtol=1e-3)
    assert abs(near - (rotated(q, [9]) * rotated(k, [5])).sum()) > 1e-3


def test_it_stays_in_the_type_it_is_given():
    turn = angles(jnp.arange(3, dtype=jnp.int32), SIZE, THETA)
    assert [x.dtype for x in turn] == [jnp.float32] * 2
    assert rotate(jnp.ones((3, 2, SIZE), jnp.bfloat16), *turn).dtype == jnp.bfloat16
