"""Compute of a device falls with the expert axis: the flops of the compiled training step, for the same users."""

import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import by_slot, empty_bank
from pefx.config import AdapterSpec, MeshConfig, ModelConfig
from pefx.mesh import of_base, on_mesh, place
from pefx.model import Base
from pefx.optim import init_opt
from pefx.steps import TrainHyper, train_step
from tests.laws.test_shardings import beside
from tests.laws.world import PAGE, Item, train_batch

USERS, LENGTH = 8, 2 * PAGE
MODEL = ModelConfig(
    vocab_size=256, hidden=128, layers=1, heads=8, kv_heads=8, head_size=16, dense_hidden=128, expert_hidden=256,
    experts=16, experts_per_token=4, dense_layers=(), context=256,
)  # fmt: skip


def flops(mesh: MeshConfig) -> float:
    """Of one device, for a step on all users' texts."""
    own, one = USERS // mesh.rows, np.ones(USERS, np.float32)
    slots = np.tile(np.arange(own, dtype=np.int32), mesh.rows)
    hyper = TrainHyper(slots, one, one, one, one, one, one, np.ones(USERS, bool))
    shard = [Item(np.arange(LENGTH, dtype=np.int32), slot) for slot in range(own)]
    batch = beside([train_batch(shard, own * LENGTH, own)] * mesh.rows)
    with on_mesh(mesh):
        bank = place(by_slot, empty_bank(MODEL, AdapterSpec(rank=8), USERS))
        arguments = place(of_base, Base(MODEL, nnx.Rngs(0))), bank, place(by_slot, init_opt(bank)), batch, hyper
        return train_step.jitted().lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_the_flops_of_a_device_fall_with_the_expert_axis() -> None:
    found = {shards: flops(MeshConfig(1, shards, 1)) for shards in (1, 4)}
    # Of 0.25 each; sums over all slots and maps of tiles are not divided.
    assert found[4] < 0.35 * found[1], found
