"""Rotary embedding: pairs rotated by position, so that scores depend on distance."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.config import ModelConfig, YarnConfig
from pefx.layers.rope import angles, rotary_size, rotate, softmax_scale, yarn_ramp

SIZE, THETA = 6, 100.0
CONFIG = ModelConfig(head_size=SIZE, rope_theta=THETA)


def rotated(x: np.ndarray, positions) -> np.ndarray:
    turn = angles(jnp.asarray(positions, jnp.int32), CONFIG)
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
    turn = angles(jnp.arange(3, dtype=jnp.int32), CONFIG)
    assert [x.dtype for x in turn] == [jnp.float32] * 2
    assert rotate(jnp.ones((3, 2, SIZE), jnp.bfloat16), *turn).dtype == jnp.bfloat16


def test_a_part_of_a_head_is_rotated_and_the_rest_passes():
    x = np.random.default_rng(2).normal(size=(3, 2, 10)).astype(np.float32)
    config = replace(CONFIG, head_size=10, rotary_fraction=0.6)
    assert rotary_size(config) == SIZE
    turn = angles(jnp.asarray([0, 3, 50]), config)
    got = np.asarray(rotate(jnp.asarray(x), *turn))
    np.testing.assert_array_equal(got[..., SIZE:], x[..., SIZE:])
    np.testing.assert_array_equal(got[..., :SIZE], rotated(x[..., :SIZE], [0, 3, 50]))


def test_neighbours_are_halves_in_another_order():
    x = np.random.default_rng(3).normal(size=(3, 2, SIZE)).astype(np.float32)
    turn = angles(jnp.asarray([0, 3, 50]), CONFIG)
    apart = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
    np.testing.assert_array_equal(rotate(jnp.asarray(x), *turn, neighbours=True), rotate(jnp.asarray(apart), *turn))


YARN = YarnConfig(factor=4.0, original_context=200, beta_fast=8.0, beta_slow=1.0, attention_factor=1.5)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_down():
    size, theta = 32, 1000.0
    plain = theta ** -(np.arange(0, size, 2) / size)
    turns = YARN.original_context * plain / (2 * np.pi)
    config = ModelConfig(head_size=size, rope_theta=theta, yarn=YARN)
    cosine, sine = (np.asarray(part)[1, 0] for part in angles(jnp.asarray([0, 1]), config))
    np.testing.assert_allclose(np.hypot(cosine, sine), 1.5, rtol=1e-6)
    ratio = np.arctan2(sine, cosine) / plain
    fast, slow = turns > 12, turns < 0.7
    assert fast.any()
    assert slow.any()
    np.testing.assert_allclose(ratio[fast], 1, rtol=1e-5)
    np.testing.assert_allclose(ratio[slow], 1 / YARN.factor, rtol=1e-5)
    between = ratio[~fast & ~slow]
    assert (np.diff(ratio) <= 1e-6).all()
    assert ((between > 1 / YARN.factor) & (between < 1)).any()


def test_the_ramp_of_one_bound_is_a_step():
    ramp = yarn_ramp(replace(YARN, beta_fast=1.0, original_context=4096), 64, 50_000.0)
    assert sorted(set(ramp.tolist())) == [0.0, 1.0]


def test_scores_are_scaled_by_the_size_of_a_head_and_by_yarn_in_latent_attention_alone():
    assert softmax_scale(CONFIG) == softmax_scale(replace(CONFIG, yarn=YARN)) == SIZE**-0.5
    latent = replace(CONFIG, kv_rank=8, nope_head_size=10, rope_head_size=6)
    assert softmax_scale(latent) == softmax_scale(replace(latent, yarn=YARN)) == 0.25
    stretched = replace(latent, yarn=replace(YARN, latent_factor=2.0))
    assert softmax_scale(stretched) == pytest.approx(0.25 * (1 + 0.2 * np.log(4)) ** 2)
