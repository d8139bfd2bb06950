"""The base's one forward against the same model in float64 numpy, for every mix of layers."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.config import ModelConfig
from pefx.model import Base, abstract_base, forward, runs, unembed
from tests.model_small import (
    MODEL,
    PAGE,
    SPEC,
    TOKENS,
    Plain,
    make_base,
    random_adapter,
    random_tokens,
    split_rows,
    train_batch,
    variant,
)


@jit
def _logits(base, bank, batch, routes):
    pool = KVPool.zeros(base.config, TOKENS // PAGE, PAGE)
    hidden, kv, taken = forward(base, bank, batch, pool, routes)
    return unembed(base, bank, hidden, batch.by_slot()), kv, taken


KINDS = {
    "alternating": {},
    "dense": {"dense_layers": (0, 1), "layers": 2, "kv_heads": 3},
    "sparse and untied": {
        "dense_layers": (),
        "layers": 2,
        "tied_embedding": False,
        "normalize_gates": False,
        "experts_per_token": 3,
    },
    "sigmoid, groups, shared experts, biases, a part of a head": {
        "layers": 2,
        "dense_layers": (0,),
        "experts": 6,
        "expert_groups": 3,
        "groups_per_token": 2,
        "router_scores": "sigmoid",
        "router_bias": True,
        "gate_scale": 2.5,
        "shared_experts": 2,
        "query_key_norm": False,
        "attention_bias": True,
        "head_size": 10,
        "rotary_fraction": 0.6,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_routes_are_those_of_plain_numpy(kind):
    config = variant(**KINDS[kind])
    base = make_base(config)
    sequences, slots = random_tokens([17, 3, 1]), [1, -1, 0]
    adapters = [random_adapter(config, SPEC, seed) for seed in range(2)]
    bank = empty_bank(config, SPEC, 3)
    for slot, adapter in enumerate(adapters):
        bank = load_adapter(bank, slot, adapter, SPEC)
    logits, _, routes = _logits(base, bank, train_batch(sequences, slots).tokens, None)
    chosen = np.asarray(routes.ids)
    sparse = config.layers - len(config.dense_layers)
    assert chosen.shape == (sparse, TOKENS, config.experts_per_token)
    load = 0
    for index, (tokens, slot) in enumerate(zip(sequences, slots, strict=True)):
        want, want_routes = Plain(base, adapters[slot] if slot >= 0 else None)(tokens)
        np.testing.assert_allclose(split_rows(sequences, logits)[index], want, rtol=1e-4, atol=2e-5)
        for layer, ids in enumerate(want_routes):
            np.testing.assert_array_equal(split_rows(sequences, chosen[layer])[index], ids)
        load += len(tokens)
    # Every live token spreads a probability of one over the experts; padding none.
    np.testing.assert_allclose(np.asarray(routes.load).sum(1), np.full(sparse, load), rtol=1e-5)


def test_replayed_routes_are_taken_and_the_rest_stay_live():
    base, sequences = make_base(), random_tokens([20, 9])
    batch = train_batch(sequences, [-1, -1]).tokens
    logits, _, live = _logits(base, None, batch, jnp.full((2, TOKENS, 2), -1, jnp.int32))
    np.testing.assert_array_equal(logits, _logits(base, None, batch, None)[0])
    replay = np.full((2, TOKENS, 2), -1, np.int32)
    replay[1, :20] = [4, 0]
    moved, _, taken = _logits(base, None, batch, replay)
    np.testing.assert_array_equal(taken.ids[1, :20], replay[1, :20])
    np.testing.assert_array_equal(taken.ids[0], live.ids[0])
    rows = split_rows(sequences, moved), split_rows(sequences, logits)
    assert (rows[0][0] != rows[1][0]).any()
    np.testing.assert_array_equal(rows[0][1], rows[1][1])


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_runs_cut_the_layers_where_the_kind_changes(kinds):
    dense = tuple(i for i, one in enumerate(kinds) if one)
    found = runs(variant(layers=len(kinds), dense_layers=dense))
    assert [i for run, _ in found for i in run] == list(range(len(kinds)))
    assert all(kinds[i] == kind for run, kind in found for i in run)
    assert all(a[1] != b[1] for a, b in pairwise(found))
    assert all(len(run) > 0 for run, _ in found)


def test_runs_of_an_alternating_base():
    assert runs(variant(layers=5, dense_layers=(0, 1, 3))) == [
        (range(2), True),
        (range(2, 3), False),
        (range(3, 4), True),
        (range(4, 5), False),
    ]


def parameters(c: ModelConfig) -> int:
    attention = c.hidden * (2 * c.heads + 2 * c.kv_heads) * c.head_size + 2 * c.head_size
    dense = sum(layer < c.layers for layer in c.dense_layers)
    sparse = c.layers - dense
    feed = dense * 3 * c.hidden * c.dense_hidden + sparse * c.experts * (3 * c.hidden * c.expert_hidden + c.hidden)
    embeddings = (1 if c.tied_embedding else 2) * c.vocab_size * c.hidden
    return c.layers * (attention + 2 * c.hidden) + feed + embeddings + c.hidden


HUGE = ModelConfig(
    vocab_size=163_840, hidden=7168, layers=61, heads=64, kv_heads=8, head_size=128, dense_hidden=18_432,
    expert_hidden=2048, experts=384, experts_per_token=8, tied_embedding=False, precision="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("config", [ModelConfig(), MODEL, variant(tied_embedding=False), HUGE], ids=range(4))
def test_an_abstract_base_has_every_parameter_and_no_array(config):
    base = abstract_base(config)
    leaves = jax.tree.leaves(base)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert all(leaf.dtype == jnp.dtype(config.precision) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == parameters(config)
    assert base.config == config


def test_an_abstract_base_is_the_shape_of_a_real_one():
    real, abstract = Base(MODEL, nnx.Rngs(0)), abstract_base(MODEL)
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    for one, other in zip(jax.tree.leaves(real), jax.tree.leaves(abstract), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    other = Base(MODEL, nnx.Rngs(1))
    assert (np.asarray(real.embed[...]) != np.asarray(other.embed[...])).any()
