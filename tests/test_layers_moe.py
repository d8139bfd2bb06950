"""Routing and expert layers: the formula, replay with live gates, padding that goes nowhere, gradients."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels.factors import Factors
from kernels.rows import rows_of
from pefx.compiler import jit
from pefx.layers.moe import Experts, Router, Routing, moe, regions, route
from tests.interpreter import in_the_interpreter
from tests.model_small import MODEL, variant

SINGLES, TILE, SLOTS, D = 3, 4, 3, 33
ROWS = SINGLES + 3 * TILE
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


SIGMOID = variant(experts=12, experts_per_token=3, router_scores="sigmoid", router_bias=True, gate_scale=2.5)
GROUPED = replace(SIGMOID, expert_groups=4, groups_per_token=2)


def sigmoid_router() -> tuple[Router, np.ndarray, np.ndarray]:
    """A router with a bias that decides, the scores it gives X, and those with the bias."""
    router = jax.tree.map(lambda w: w[0], Router(SIGMOID, 1, nnx.Rngs(2)))
    assert router.bias is not None
    router.bias = nnx.Param(jnp.asarray(np.random.default_rng(3).normal(size=12) * 0.3, jnp.float32))
    scores = 1 / (1 + np.exp(-X.astype(np.float64) @ np.asarray(router.weight[...], np.float64).T))
    return router, scores, scores + np.asarray(router.bias[...])


@pytest.mark.parametrize("config", [SIGMOID, GROUPED, replace(GROUPED, normalize_gates=False)], ids=range(3))
def test_a_bias_chooses_and_is_not_in_the_gates(config):
    router, scores, wanted = sigmoid_router()
    live = jnp.full((ROWS, 3), -1, jnp.int32)
    routing = route(jnp.asarray(X), router, config, live)
    differ = 0
    for row in range(ROWS):
        sums = [np.sort(group)[-2:].sum() for group in wanted[row].reshape(config.expert_groups, -1)]
        best = np.argsort(sums)[::-1][: config.groups_per_token]
        allowed = np.isin(np.arange(12) // (12 // config.expert_groups), best)
        ids = np.argsort(-np.where(allowed, wanted[row], -np.inf))[:3]
        np.testing.assert_array_equal(routing.ids[row], ids)
        gates = scores[row, ids] / (scores[row, ids].sum() if config.normalize_gates else 1)
        np.testing.assert_allclose(routing.gates[row], 2.5 * gates, rtol=1e-5)
        differ += set(ids) != set(np.argsort(-scores[row])[:3])
    assert differ > 3


def test_replayed_sigmoid_gates_are_of_the_recorded_experts():
    router, scores, _ = sigmoid_router()
    replay = np.full((ROWS, 3), -1, np.int32)
    replay[2], replay[5, 1] = [7, 0, 11], 4
    routing = route(jnp.asarray(X), router, GROUPED, jnp.asarray(replay))
    np.testing.assert_array_equal(routing.ids[2], [7, 0, 11])
    assert routing.ids[5, 1] == 4
    for row in (2, 5):
        own = scores[row, np.asarray(routing.ids[row])]
        np.testing.assert_allclose(routing.gates[row], 2.5 * own / own.sum(), rtol=1e-5)
    pull = jax.grad(lambda x: route(x, router, GROUPED, jnp.asarray(replay)).gates[2, 0])(jnp.asarray(X))
    assert np.abs(pull[2]).max() > 1e-3


def test_of_equal_experts_and_groups_the_first_are_taken():
    router, _, _ = sigmoid_router()
    router = jax.tree.map(jnp.zeros_like, router)
    routing = route(jnp.asarray(X), router, GROUPED, jnp.full((ROWS, 3), -1, jnp.int32))
    np.testing.assert_array_equal(routing.ids, np.tile([0, 1, 2], (ROWS, 1)))


def shapes(name: str, shared: bool) -> list[tuple[int, ...]]:
    """Shapes of a site's two factors; `shared` is the one on the hidden side."""
    reads, writes = (13, D) if name == "down_proj" else (D, 13)
    out: list[tuple[int, ...]] = [(SLOTS, 5, 8, reads), (SLOTS, 5, 8, writes)]
    if shared:
        side = 1 if name == "down_proj" else 0
        out[side] = (SLOTS, *out[side][2:])
    return out


@jit
def _layer(x, ids, gates, positions, slots, factors, cotangent):
    places = positions, regions(rows_of(slots, SINGLES, TILE), SLOTS)
    zero = jnp.asarray(0, jnp.int32)

    def run(x, gates, factors):
        half = jnp.full(SLOTS, 0.5)
        inside = {name: [x if x.ndim == 4 else None for x in pair] for name, pair in factors.items()}
        shared = {name: [x if x.ndim == 3 else None for x in pair] for name, pair in factors.items()}

        def by_site(part):
            some = {name: (a, b) for name, (a, b) in part.items() if a is not None or b is not None}
            return {"experts." + name: Factors(a, b, half, zero) for name, (a, b) in some.items()}

        sites = by_site(inside), by_site(shared)
        return moe(x, EXPERTS, jnp.asarray(1, jnp.int32), Routing(ids, gates, jnp.zeros((ROWS, 5))), sites, places)

    y, pull = jax.vjp(run, x, gates, factors)
    return y, *pull(cotangent)


_layer_on_tpu = functools.partial(in_the_interpreter, _layer)


def _name(value) -> str:
    return value if isinstance(value, str) else "portable" if value is _layer else "pallas"


def _dense(x, gates, ids, live, slots, factors):
    """Every (row, copy) by its own expert's matrices, gathered; no grouping."""
    slot = np.broadcast_to(slots[:, None], ids.shape)

    def project(y, name):
        base = jnp.einsum("tkd,tkdf->tkf", y, getattr(EXPERTS, name)[...][1, ids])
        if name not in factors:
            return base
        a, b = (f[slot, ids] if f.ndim == 4 else f[slot] for f in factors[name])
        delta = 0.5 * jnp.einsum("tkr,tkrf->tkf", jnp.einsum("tkd,tkrd->tkr", y, a), b)
        return base + jnp.where((slot >= 0)[..., None], delta, 0)

    copies = jnp.repeat(x[:, None], 2, axis=1)
    out = project(jax.nn.silu(project(copies, "gate_proj")) * project(copies, "up_proj"), "down_proj")
    return jnp.where(live[:, None], jnp.sum(out * gates[..., None], axis=1), 0)


# Sites with adapters, and whether the factor on the hidden side is shared.
MIXES = {
    "per_expert": {"gate_proj": False, "up_proj": False, "down_proj": False},
    "shared_hidden": {"gate_proj": True, "up_proj": True, "down_proj": True},
    "some of both": {"gate_proj": False, "up_proj": True},
    "down alone": {"down_proj": True},
    "none": {},
    "down inside": {"down_proj": False},  # interpreted: each kernel more takes seconds to compile
}


@pytest.mark.parametrize(
    ("mix", "run"), [(mix, _layer_on_tpu if mix == "down inside" else _layer) for mix in MIXES], ids=_name
)
def test_the_layer_and_its_gradients_are_those_of_each_row_alone(mix, run):
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(5)[:2] for _ in range(ROWS)]).astype(np.int32)
    gates = rng.random((ROWS, 2)).astype(np.float32)
    positions = np.arange(ROWS, dtype=np.int32)
    slots = np.array([2, -1, 0, *np.repeat([1, -1, 2], TILE)], np.int32)
    positions[[0, -1]] = -1  # padding, alone and at the end of a tile
    factors = {
        name: [rng.normal(size=s).astype(np.float32) * 0.2 for s in shapes(name, shared)]
        for name, shared in MIXES[mix].items()
    }
    cotangent = rng.normal(size=(ROWS, D)).astype(np.float32)
    got = run(X, ids, gates, positions, slots, factors, cotangent)

    def dense(x, gates, factors):
        return _dense(x, gates, ids, positions >= 0, slots, factors)

    y, pull = jax.vjp(jax.jit(dense), jnp.asarray(X), jnp.asarray(gates), factors)
    for one, want in zip(jax.tree.leaves(got), jax.tree.leaves((y, *pull(jnp.asarray(cotangent)))), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-4, atol=2e-5)
    assert not np.asarray(got[0])[[0, -1]].any()


@functools.partial(jit, static_argnums=1)
def _numbered(slots, bank_slots):
    return [(region.slots, region.index) for region in regions(rows_of(slots, SINGLES, TILE), bank_slots)]


def test_adapters_are_numbered_among_those_present():
    owners = np.array([7, -1, 7, *np.repeat([4, -1, 9], TILE)], np.int32)
    (single, of_single), (tiled, of_tiled) = _numbered(owners, 10)
    np.testing.assert_array_equal(single[:2], [-1, 7])
    np.testing.assert_array_equal(tiled[:3], [-1, 4, 9])
    np.testing.assert_array_equal(of_single, [1, 0, 1])
    np.testing.assert_array_equal(of_tiled, np.repeat([1, 0, 2], TILE))


def test_without_a_bank_all_rows_are_the_bases():
    found = _numbered(np.full(ROWS, 3, np.int32), 0)
    assert [slots.shape[0] for slots, _ in found] == [1, 1]
    assert not any(np.asarray(index).any() for _, index in found)
