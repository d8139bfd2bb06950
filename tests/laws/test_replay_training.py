"""Law 10 in scoring and training: recorded routes are taken by every row of every expert layer, recomputed or not."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.config import AdapterSpec, Remat
from pefx.model import Base, forward
from pefx.optim import init_opt
from pefx.steps import TrainHyper, score, score_with_routes, train_step
from tests.laws import world
from tests.laws.world import PAGE, Item, random_sequences, train_batch

TO_THE_BIT = False  # routes are exact, numbers near: bits under replay are in test_replay
# A leading dense layer: the experts' layers are numbered from 1, their routes from 0.
MODEL = replace(world.MODEL, layers=3, dense_layers=(0,))
SPARSE = MODEL.layers - len(MODEL.dense_layers)
TOKENS, LIVE = 96, 64  # rows from here on, a sequence, have no recorded routes
SPEC = AdapterSpec(rank=2, targets=("experts.up_proj",))


@cache
def _base() -> Base:
    return Base(MODEL, nnx.Rngs(3))


def _bank():
    bank = empty_bank(MODEL, bank_spec([SPEC]), 2)
    rng = np.random.default_rng(0)
    for slot in range(2):
        adapter = init_adapter(MODEL, SPEC, slot)
        for pair in adapter.values():
            pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.1
        bank = load_adapter(bank, slot, adapter, SPEC)
    return bank


@cache
def _batch():
    texts = random_sequences(3, 1, 5, longest=PAGE)
    return train_batch([Item(s.tokens, i % 2) for i, s in enumerate(texts)], TOKENS, 3)


def _recorded() -> np.ndarray:
    """Routes that nobody would take, of all rows but the last."""
    _, ids = score_with_routes(_base(), _bank(), _batch())
    recorded = np.array((np.asarray(ids) + 3) % MODEL.experts, np.int32)
    recorded[LIVE:] = -1
    return recorded


def _train(routes, remat: Remat):
    """One step's log-probabilities and gradient sums."""
    ones = np.ones(2, np.float32)
    hyper = TrainHyper(np.arange(2, dtype=np.int32), ones, ones, ones, ones, ones, ones, np.zeros(2, bool))
    bank = _bank()
    batch = replace(_batch(), routes=routes)
    _, opt, metrics = train_step(_base(), bank, init_opt(bank), batch, hyper, remat=remat)
    return np.asarray(metrics.logprobs), jax.device_get(jax.tree.leaves(opt.gradient))


def test_scoring_by_its_own_routes_changes_nothing():
    live = score(_base(), _bank(), _batch())
    plain, ids = score_with_routes(_base(), _bank(), _batch())
    again, same = score_with_routes(_base(), _bank(), replace(_batch(), routes=np.asarray(ids)))
    assert ids.shape == (TOKENS, SPARSE, MODEL.experts_per_token)
    np.testing.assert_array_equal(ids, same)
    for found in (plain, again):
        np.testing.assert_allclose(found, live, rtol=1e-6, atol=1e-6)


def test_recorded_experts_are_taken_and_rows_without_route_live():
    recorded = _recorded()
    _, live = score_with_routes(_base(), _bank(), _batch())
    _, taken = score_with_routes(_base(), _bank(), replace(_batch(), routes=recorded))
    np.testing.assert_array_equal(np.asarray(taken)[:LIVE], recorded[:LIVE])
    # The sequence of the last rows has no recorded route, so nothing about it has changed.
    np.testing.assert_array_equal(np.asarray(taken)[LIVE:], np.asarray(live)[LIVE:])


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_training_step_takes_the_recorded_experts(remat):
    recorded = _recorded()
    scored, _ = score_with_routes(_base(), _bank(), replace(_batch(), routes=recorded))
    live = score(_base(), _bank(), _batch())
    logprobs, gradient = _train(recorded, remat)
    np.testing.assert_allclose(logprobs, scored, rtol=1e-5, atol=1e-5)
    assert np.median(np.abs(logprobs - np.asarray(live))[:LIVE]) > 1e-2
    for one, two in zip(gradient, _train(recorded, "none")[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_experts_that_were_not_recorded_have_no_gradient():
    recorded = np.zeros((TOKENS, SPARSE, MODEL.experts_per_token), np.int32)
    recorded[:, 0], recorded[:, 1] = (1, 4), (2, 7)
    _, gradient = _train(recorded, "full")
    leaves = dict(zip(jax.tree.leaves(_names()), gradient, strict=True))
    moved = np.abs(leaves["experts.up_proj.b"]).max(axis=(1, 3, 4))  # layer, expert
    for layer, chosen in enumerate([(1, 4), (2, 7)]):
        np.testing.assert_array_equal(np.flatnonzero(moved[layer]), chosen)


def _names():
    return {site: {name: f"{site}.{name}" for name in pair} for site, pair in _bank().factors.items()}


def test_routers_of_all_expert_layers_have_gradients_where_layers_are_computed_again():
    """Gates stay live. What is differentiated is not the same for all experts: the sum of a token's gates is."""
    recorded, batch = np.swapaxes(_recorded(), 0, 1), jax.tree.map(jnp.asarray, _batch().tokens)
    mix = np.random.default_rng(2).normal(size=(TOKENS, MODEL.hidden)).astype(np.float32)

    def value(base):
        pool = KVPool.zeros(MODEL, TOKENS // PAGE, PAGE)
        hidden, _, routes = forward(base, None, batch, pool, jnp.asarray(recorded), "full")
        return jnp.sum(hidden * mix), routes.ids

    gradient, taken = jit(jax.grad(value, has_aux=True))(_base())
    np.testing.assert_array_equal(np.asarray(taken)[:, :LIVE], recorded[:, :LIVE])
    routers = [segment.block.feed.weight[...] for segment in gradient.segments if segment.experts is not None]
    per_layer = np.concatenate([np.abs(np.asarray(x)).max(axis=(1, 2)) for x in routers])
    assert per_layer.shape == (SPARSE,)
    assert np.all(per_layer > 1e-4)
