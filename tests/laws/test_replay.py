"""Law 10: recorded routes are followed exactly, gates stay live, -1 routes live. Law 1's routes come back as taken."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.model import forward
from tests.laws import world
from tests.laws.world import PAGE, make_base, random_sequences, train_batch

TOKENS = 256
MODEL = replace(world.MODEL, layers=3)  # two of them with experts


@pytest.fixture(autouse=True)
def _deeper(monkeypatch):
    monkeypatch.setattr(world, "MODEL", MODEL)


@jit
def _run(base, batch, routes):
    hidden, _, taken = forward(base, None, batch, KVPool.zeros(base.config, TOKENS // PAGE, PAGE), routes)
    return hidden, taken.ids


def _batch():
    return train_batch(random_sequences(4, 1, 11, longest=60), TOKENS, 4).tokens


def test_replaying_its_own_routes_changes_no_bit():
    base, batch = make_base(), _batch()
    hidden, ids = _run(base, batch, None)
    again, same = _run(base, batch, ids)
    assert np.array_equal(ids, same)
    assert np.asarray(hidden).tobytes() == np.asarray(again).tobytes()
    live, _ = _run(base, batch, jnp.full_like(ids, -1))
    assert np.asarray(hidden).tobytes() == np.asarray(live).tobytes()


def test_recorded_experts_are_selected_and_others_route_live():
    base, batch = make_base(), _batch()
    hidden, ids = _run(base, batch, None)
    recorded = np.array((np.asarray(ids) + 3) % MODEL.experts, np.int32)
    recorded[:, 100:] = -1
    other, taken = _run(base, batch, recorded)
    assert np.array_equal(np.asarray(taken)[:, :100], recorded[:, :100])
    # The first expert layer sees the same input where it routes live, and routes it the same.
    assert np.array_equal(np.asarray(taken)[0, 100:], np.asarray(ids)[0, 100:])
    assert not np.array_equal(hidden, other)


def test_gates_stay_live_under_replay():
    base, batch = make_base(), jax.tree.map(jnp.asarray, _batch())
    _, ids = _run(base, batch, None)

    def value(base):
        hidden, _, _ = forward(base, None, batch, KVPool.zeros(base.config, TOKENS // PAGE, PAGE), ids)
        return jnp.sum(hidden[:, 0])

    gradient = jit(jax.grad(value))(base)
    for segment in gradient.segments:
        if segment.experts is not None:
            per_layer = jnp.max(jnp.abs(segment.block.feed.weight[...]), axis=(1, 2))
            assert np.all(np.asarray(per_layer) > 0)
