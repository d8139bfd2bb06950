"""Routing and expert layers: the formula, replay with live gates, padding that goes nowhere, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels.factors import Factors
from pefx.compiler import jit
from pefx.layers.moe import Experts, Router, Routing, group_by_expert, moe, route
from tests.model_small import MODEL, variant

ROWS, SLOTS, D = 11, 3, 33
ROUTER = jax.tree.map(lambda w: w[0], Router(MODEL, 1, nnx.Rngs(0)))
EXPERTS = Experts(MODEL, 2, nnx.Rngs(1))
X = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
LIVE = np.full((ROWS, 2), -1, np.int32)


def scores_of(x) -> np.ndarray:
    logits = x.astype(np.float64) @ np.asarray(ROUTER.weight[...], np.float64).T
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_likeliest_experts_are_taken_in_order(normalize):
    routing = route(jnp.asarray(X), ROUTER, variant(normalize_gates=normalize), jnp.asarray(LIVE))
    scores = scores_of(X)
    ids = np.argsort(-scores, -1)[:, :2]
    gates = np.take_along_axis(scores, ids, -1)
    np.testing.assert_array_equal(routing.ids, ids)
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(routing.gates, gates / (gates.sum(-1, keepdims=True) if normalize else 1), rtol=1e-5)


def test_a_replayed_expert_is_taken_and_its_gate_stays_live():
    replay = LIVE.copy()
    replay[3], replay[4, 1] = [4, 2], 0
    routing = route(jnp.asarray(X), ROUTER, variant(normalize_gates=False), jnp.asarray(replay))
    free = route(jnp.asarray(X), ROUTER, variant(normalize_gates=False), jnp.asarray(LIVE))
    scores = scores_of(X)
    np.testing.assert_array_equal(routing.ids[3], [4, 2])
    np.testing.assert_array_equal(routing.ids[4], [int(free.ids[4, 0]), 0])
    np.testing.assert_allclose(routing.gates[3], scores[3, [4, 2]], rtol=1e-5)
    others = [row for row in range(ROWS) if row not in (3, 4)]
    np.testing.assert_array_equal(routing.ids[jnp.array(others)], free.ids[jnp.array(others)])

    def gate(x):
        return route(x, ROUTER, variant(normalize_gates=False), jnp.asarray(replay)).gates[3, 0]

    assert np.abs(jax.grad(gate)(jnp.asarray(X))[3]).max() > 1e-4


FACTORS = {
    "gate_proj": ((SLOTS, 5, 8, D), (SLOTS, 5, 8, 13)),
    "up_proj": ((SLOTS, 8, D), (SLOTS, 5, 8, 13)),  # the factor on the hidden side shared
    "down_proj": ((SLOTS, 5, 8, 13), (SLOTS, 8, D)),
}


@jit
def _layer(x, ids, gates, positions, slots, factors, cotangent):
    tiles = group_by_expert(ids, positions, slots, (5, SLOTS, 8, 2))
    zero = jnp.asarray(0, jnp.int32)
    sites = {"experts." + name: Factors(pair[0], pair[1], jnp.full(SLOTS, 0.5), zero) for name, pair in factors.items()}

    def run(x, gates):
        return moe(x, EXPERTS, jnp.asarray(1, jnp.int32), Routing(ids, gates, jnp.zeros((ROWS, 5))), sites, tiles)

    y, pull = jax.vjp(run, x, gates)
    return y, *pull(cotangent)


def _dense(x, gates, ids, live, slots, factors):
    """Every (row, copy) by its own expert's matrices, gathered; no grouping."""
    slot = np.broadcast_to(slots[:, None], ids.shape)

    def project(y, name):
        a, b = (f[slot, ids] if f.ndim == 4 else f[slot] for f in factors[name])
        delta = 0.5 * jnp.einsum("tkr,tkrf->tkf", jnp.einsum("tkd,tkrd->tkr", y, a), b)
        base = jnp.einsum("tkd,tkdf->tkf", y, getattr(EXPERTS, name)[...][1, ids])
        return base + jnp.where((slot >= 0)[..., None], delta, 0)

    copies = jnp.repeat(x[:, None], 2, axis=1)
    out = project(jax.nn.silu(project(copies, "gate_proj")) * project(copies, "up_proj"), "down_proj")
    return jnp.where(live[:, None], jnp.sum(out * gates[..., None], axis=1), 0)


def test_the_layer_and_its_gradients_are_those_of_each_row_alone():
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(5)[:2] for _ in range(ROWS)]).astype(np.int32)
    gates = rng.random((ROWS, 2)).astype(np.float32)
    positions, slots = np.arange(ROWS, dtype=np.int32), rng.integers(-1, SLOTS, ROWS).astype(np.int32)
    positions[-2:], slots[-2:] = -1, -1
    factors = {name: [rng.normal(size=s).astype(np.float32) * 0.2 for s in shapes] for name, shapes in FACTORS.items()}
    cotangent = rng.normal(size=(ROWS, D)).astype(np.float32)
    got = _layer(X, ids, gates, positions, slots, factors, cotangent)

    def dense(x, gates):
        return _dense(x, gates, ids, positions >= 0, slots, factors)

    y, pull = jax.vjp(jax.jit(dense), jnp.asarray(X), jnp.asarray(gates))
    for one, want in zip(got, (y, *pull(jnp.asarray(cotangent))), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-4, atol=2e-5)
    assert not np.asarray(got[0])[-2:].any()


def test_without_a_bank_rows_are_grouped_by_expert_alone():
    ids = np.array([[0, 1], [1, 2], [3, 4]], np.int32)
    positions = np.array([0, 1, -1], np.int32)
    group = jit(lambda ids, positions, slots: group_by_expert(ids, positions, slots, (5, 0, 8, 2)))
    tiles = group(ids, positions, np.full(3, -1, np.int32))
    assert int(tiles.live) == 3
    np.testing.assert_array_equal(tiles.group[:3], [0, 1, 2])
    np.testing.assert_array_equal(tiles.place[4:], [len(tiles.source)] * 2)
