"""Rows travel to their experts and back with the same bits, however many shards an expert axis has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.tiles import tile_map
from pefx.compiler import jit
from pefx.config import MeshConfig
from pefx.layers.exchange import bring, exchange, send
from pefx.mesh import DATA, EXPERT, by_row, on_mesh, sharded

TO_THE_BIT = True

TOKENS, COPIES, EXPERTS, WIDTH = 16, 3, 8, 5


def _moe(x, ids, gates, scale):
    """Every expert multiplies its rows by a number of its own."""
    count = scale.shape[0]

    def loss(x, gates):
        to = exchange(ids, count)
        tiles = tile_map(to.experts.reshape(-1), groups=count, tile=4)
        own = scale[jnp.maximum(tiles.group, 0)]
        buffer = send(x, tiles, to, COPIES) * jnp.repeat(own, 4)[:, None]
        y = bring(buffer, gates, tiles, to)
        return jnp.sum(y * y), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, gates)
    return y, *gradients


def _of_expert(path, x):
    return ("experts",)


def _ragged_all_to_all(rows, out, begin, length, begin_there, length_back, *, axis_name):
    """What XLA:CPU does not have, from its definition: chunk s of shard r's rows goes to shard s."""
    everyone = [jax.lax.all_gather(x, axis_name) for x in (rows, begin, length, begin_there)]
    here = jax.lax.axis_index(axis_name)
    place = jnp.arange(out.shape[0])
    for sender in range(everyone[0].shape[0]):
        sent, first, count, at = (x[sender] for x in everyone)
        first, count, at = first[here], count[here], at[here]
        inside = (place >= at) & (place < at + count)
        chunk = sent[jnp.clip(place - at + first, 0, sent.shape[0] - 1)]
        out = jnp.where(inside[:, None], chunk, out)
    return out


@pytest.fixture(params=["portable", "ragged"], autouse=True)
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ragged":
        monkeypatch.setattr("pefx.layers.exchange.on_tpu", lambda: True)
        monkeypatch.setattr(jax.lax, "ragged_all_to_all", _ragged_all_to_all)


@pytest.mark.parametrize("shards", [(1, 2), (1, 8), (2, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("routes", ["even", "one expert", "some nowhere"])
def test_the_bits_of_a_single_shard(shards, routes):
    rng = np.random.default_rng(1)
    x, gates = (rng.normal(size=s).astype(np.float32) for s in ((TOKENS, WIDTH), (TOKENS, COPIES)))
    ids = np.stack([rng.permutation(EXPERTS)[:COPIES] for _ in range(TOKENS)]).astype(np.int32)
    if routes == "one expert":
        ids[:, 1:] = -1
        ids[:, 0] = 5
    if routes == "some nowhere":
        ids[::3] = -1
    scale = rng.normal(size=EXPERTS).astype(np.float32)
    want = jit(_moe)(x, ids, gates, scale)
    rows = P((DATA, EXPERT))
    with on_mesh(MeshConfig(shards[0], shards[1], 1)):
        run = sharded(_moe, (by_row, by_row, by_row, _of_expert), lambda _: (rows,) * 3)
        got = jit(run)(x, ids, gates, scale)
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
