"""Losses against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pefx.compiler import jit
from pefx.config import MeshConfig
from pefx.losses.token import balance, cross_entropy, entropies, token_logprobs
from pefx.mesh import MODEL, on_mesh, sharded

ROWS, VOCABULARY, SLOTS = 11, 7, 3


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@jit
def _logprobs(logits, targets, cotangent):
    y, pull = jax.vjp(lambda x: token_logprobs(x, targets), logits)
    return y, pull(cotangent)[0]


@settings(max_examples=25)
@given(st.lists(st.integers(-1, VOCABULARY - 1), min_size=ROWS, max_size=ROWS), st.sampled_from([0.1, 1.0, 300.0]))
def test_log_probabilities_and_their_gradient(targets, size):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(ROWS, VOCABULARY)) * size).astype(np.float32)
    cotangent = rng.normal(size=ROWS).astype(np.float32)
    targets = np.array(targets, np.int32)
    y, gradient = _logprobs(logits, targets, cotangent)
    every, some = log_softmax(logits), (targets >= 0)[:, None]
    np.testing.assert_allclose(
        y, np.where(targets >= 0, every[np.arange(ROWS), targets], 0), rtol=2e-6, atol=2e-6 * max(1, size)
    )
    one_hot = np.eye(VOCABULARY)[targets]
    wanted = np.where(some, (one_hot - np.exp(every)) * cotangent[:, None], 0)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5 if size < 100 else 1e-4)


def _entropies(logits, cotangent):
    y, pull = jax.vjp(entropies, logits)
    return y, pull(cotangent)[0]


_entropies_whole = jit(_entropies)


def _entropies_of(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In float64, and the gradient `-p (log p + H)` of each."""
    logs = log_softmax(logits)
    found = -(np.exp(logs) * logs).sum(-1)
    return found, -np.exp(logs) * (logs + found[:, None])


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 30.0])
def test_entropies_and_their_gradient(size):
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(ROWS, VOCABULARY)) * size + 50).astype(np.float32)
    cotangent = rng.normal(size=ROWS).astype(np.float32)
    y, gradient = _entropies_whole(logits, cotangent)
    wanted, slopes = _entropies_of(logits)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, slopes * cotangent[:, None], rtol=1e-4, atol=2e-6)


def test_entropies_of_a_divided_vocabulary():
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=(ROWS, 2 * VOCABULARY)) * 3).astype(np.float32)
    cotangent = rng.normal(size=ROWS).astype(np.float32)
    divided = sharded(
        _entropies, (lambda path, x: (None, "vocab"), lambda path, x: ()), lambda _: (P(), P(None, MODEL))
    )
    with on_mesh(MeshConfig(1, 1, 2)):
        y, gradient = jit(divided)(logits, cotangent)
    wanted, slopes = _entropies_of(logits)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes * cotangent[:, None], rtol=1e-4, atol=2e-6)


_cross_entropy = jit(cross_entropy, static_argnums=3)


@settings(max_examples=25)
@given(st.lists(st.integers(-1, SLOTS - 1), min_size=ROWS, max_size=ROWS), st.integers(0, 99))
def test_each_slots_loss_is_the_sum_over_its_own_weighted_rows(slots, seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.random(ROWS).astype(np.float32)
    weights = np.where(rng.random(ROWS) < 0.4, 0, rng.random(ROWS)).astype(np.float32)
    # A row without weight may hold anything: it is in nobody's loss.
    logprobs[weights == 0] = -np.inf
    slots = np.array(slots, np.int32)
    sums, total = _cross_entropy(logprobs, weights, slots, SLOTS)
    for slot in range(SLOTS):
        mine = (slots == slot) & (weights > 0)
        np.testing.assert_allclose(sums[slot], -(logprobs[mine] * weights[mine]).sum(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(total[slot], weights[slots == slot].sum(), rtol=1e-5, atol=1e-7)


_balance = jit(balance)


def test_an_even_load_costs_one_and_a_collapsed_one_the_number_of_experts():
    layers, tokens, experts, copies = 2, 12, 4, 2
    live = np.array([1.0] * 8 + [0.0] * 4, np.float32)
    even = np.stack([np.arange(tokens) % 4, (np.arange(tokens) + 1) % 4], -1)[None].repeat(layers, 0).astype(np.int32)
    load = np.full((layers, experts), 8 / experts, np.float32)
    np.testing.assert_allclose(_balance(load, even, live), 1, rtol=1e-6)
    one = np.zeros((layers, tokens, copies), np.int32)
    all_in_one = np.array([[8, 0, 0, 0]] * layers, np.float32)
    np.testing.assert_allclose(_balance(all_in_one, one, live), experts, rtol=1e-6)


def test_balance_is_its_formula():
    rng = np.random.default_rng(0)
    scores = log_softmax(rng.normal(size=(3, 10, 5)))
    ids = np.argsort(-scores, -1)[..., :2].astype(np.int32)
    live = (rng.random(10) < 0.7).astype(np.float32)
    load = (np.exp(scores) * live[None, :, None]).sum(1)
    want = 0.0
    for layer in range(3):
        chosen = [ids[layer, t] for t in range(10) if live[t]]
        fraction = np.bincount(np.concatenate(chosen), minlength=5) / (2 * live.sum())
        want += 5 * (fraction * load[layer] / live.sum()).sum() / 3
    np.testing.assert_allclose(_balance(load.astype(np.float32), ids, live), want, rtol=1e-5)
    assert float(jnp.asarray(want)) > 0.9
