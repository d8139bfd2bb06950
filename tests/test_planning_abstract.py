"""Configs of runs become plans."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from kernels.delta_rule.api import EXTRA
from pefx.config import AdapterSpec, MeshConfig, ServeConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.mesh import mesh_of
from pefx.planning.abstract import arguments, model_of, plan_of
from pefx.planning.roofline import local_bytes
from tests.planning_small import CONFIG, SMALL


def test_a_config_of_a_run_becomes_a_plan() -> None:
    users = (UserConfig("a", "a"), UserConfig("b", "b", adapter=AdapterSpec(rank=4)))
    planned = plan_of(TrainConfig(name="t", output="o", base="assets/base", users=users), "v6e:2x2")
    assert (planned.users, planned.slots, planned.adapter.rank) == (2, 2, 8)
    assert model_of(planned).hidden == 192
    assert plan_of(ServeConfig(name="s", base="assets/base", max_rank=5), "v6e:2x2").adapter.rank == 5
    with pytest.raises(PefxError, match="'users' is empty"):
        plan_of(TrainConfig(name="t", output="o"), "v6e:2x2")


def test_other_methods_have_room_in_a_plan() -> None:
    vera, xs = AdapterSpec("vera", 8, targets=("q_proj",)), AdapterSpec("lora_xs", 4, targets=("q_proj",))
    users = (UserConfig("a", "a", adapter=xs), UserConfig("b", "b", adapter=AdapterSpec(targets=("q_proj",))))
    assert plan_of(TrainConfig("t", "o", base="assets/base", users=users), "v6e:2x2").others == (xs,)
    assert plan_of(ServeConfig("s", "assets/base", others=(vera,)), "v6e:2x2").others == (vera,)
    config = replace(
        CONFIG, mesh=MeshConfig(2, 2, 2), others=(vera, xs, AdapterSpec("lora_ga", 2, targets=("q_proj",)))
    )
    mesh = mesh_of(np.asarray(jax.devices()[:8]), config.mesh)
    given, plain = (arguments(one, SMALL, mesh) for one in (config, replace(config, others=())))
    # Whole on every shard of data; heads are divided over model: A, V of 256 numbers, B, U of half of 512.
    assert local_bytes(given.base) - local_bytes(plain.base) == 4 * (8 + 2 * 4) * (256 + 512 // 2)
    assert {"between", "by_rank", "a0", "b0"} <= set(given.bank.factors["q_proj"])
    assert given.hyper.rates is not None
    assert plain.hyper.rates is None


def test_memories_have_room_in_pages_batches_and_numbers() -> None:
    memory = AdapterSpec("delta_mem", 8, targets=("memory",), states=4)
    mesh = mesh_of(np.asarray(jax.devices()[:8]), MeshConfig(2, 2, 2))
    config = replace(CONFIG, mesh=MeshConfig(2, 2, 2), others=(memory,))
    given, plain = (arguments(one, SMALL, mesh) for one in (config, replace(config, others=())))
    pages = given.pool.kv.memory.shape[1]
    assert given.pool.kv.memory.shape == (SMALL.layers, pages, 2, 4, 8 + EXTRA, 8)
    assert pages == given.pool.kv.keys.shape[1]
    assert given.batch.tokens.memory.shape == given.batch.tokens.tokens.shape
    assert given.serve.batch.memory.shape == given.serve.batch.tokens.shape
    assert given.hyper.states is not None
    assert (plain.pool.kv.memory, plain.batch.tokens.memory, plain.serve.batch.memory) == (None, None, None)
    assert plain.hyper.states is None
