"""The mesh: how many shards there are, what lies where, what does not divide; and that a mesh of one device is none."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from pefx.adapters.bank import empty_bank
from pefx.adapters.sharded_slots import by_slot
from pefx.collectives import over_rows
from pefx.compiler import jit
from pefx.config import AdapterSpec, MeshConfig
from pefx.errors import PefxError
from pefx.mesh import ROWS, by_page, by_row, check_divides, of_base, on_mesh, place, resolved, sharded, spec
from pefx.model import abstract_base
from pefx.presets import PRESETS
from tests.model_small import MODEL


def test_data_shards_are_as_many_as_asked_or_as_there_is_work_for():
    cores = os.cpu_count() or 1
    assert resolved(MeshConfig(3), 1) == MeshConfig(3)
    assert resolved(MeshConfig(), 1) == MeshConfig(1)
    assert resolved(MeshConfig(), 100) == MeshConfig(min(cores, len(jax.devices())))
    assert resolved(MeshConfig(0, 4, 2), 100) == MeshConfig(1, 4, 2)
    with pytest.raises(PefxError, match=r"'mesh' is 9 x 1 x 1 \(data, expert, model\), 9 devices, but there are 8"):
        resolved(MeshConfig(9), 100)


def test_what_lies_where():
    bank = spec(by_slot, empty_bank(MODEL, AdapterSpec(targets=("q_proj", "o_proj", "experts.up_proj")), 4))
    rows = ("data", "expert")
    assert bank.factors["q_proj"] == {"a": P(None, rows, None, None), "b": P(None, rows, None, ("model",))}
    assert bank.factors["o_proj"]["a"] == P(None, rows, None, ("model",))
    up = bank.factors["experts.up_proj"]
    assert up["b"] == P(None, ("data",), ("expert",), None, ("model",))
    assert bank.scales == P(("data",))
    assert spec(by_row, {"x": jnp.zeros(4)}) == {"x": ROWS}
    assert spec(by_page, jnp.zeros((2, 3, 2, 4, 5))) == P(None, rows, ("model",))
    assert spec(by_page, jnp.zeros((2, 3, 1, 4, 5))) == P(None, rows, None)
    base = spec(of_base, abstract_base(MODEL))
    experts = next(segment.experts for segment in base.segments if segment.experts is not None)
    assert experts.down_proj.get_value() == P(None, ("expert",), ("model",), None)
    assert base.final_norm.get_value() == P(None)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            MeshConfig(1, 2, 1),
            r"'mesh.expert' is 2, which does not divide the base's experts \(5\); choose one of 1, 5",
        ),
        (MeshConfig(1, 1, 2), r"'mesh.model' is 2, which does not divide the base's heads \(3\)"),
    ],
)
def test_what_does_not_divide_is_named(mesh, words):
    with pytest.raises(PefxError, match=words):
        check_divides(MODEL, mesh)
    check_divides(replace(MODEL, experts=8), MeshConfig(4, 8, 1))


def test_blocks_of_8_bit_weights_must_divide_too():
    preset, mesh = PRESETS["qwen3-30b-a3b"], MeshConfig(1, 1, 4)
    check_divides(preset, mesh)
    words = r"'mesh.model' is 4, which does not divide the base's expert_hidden in blocks of 8-bit weights \(6\)"
    with pytest.raises(PefxError, match=words):
        check_divides(replace(preset, weights="int8"), mesh)
    check_divides(replace(PRESETS["deepseek-v3"], weights="fp8"), mesh)


def _count(x, tree):
    return x.shape[0] + 0 * x, over_rows(jnp.sum(x)), tree


def _by_column(path, x):
    return (None, "slots")


@pytest.mark.parametrize("mesh", [MeshConfig(1), MeshConfig(2), MeshConfig(2, 2, 2)], ids=str)
def test_a_function_sees_its_shards_part(mesh):
    run = jit(sharded(_count, (by_row, _by_column), lambda specs: (specs[0], P(), specs[1])))
    x, tree = np.arange(8, dtype=np.float32), {"a": np.arange(24, dtype=np.float32).reshape(2, 4, 3)}
    with on_mesh(mesh):
        sizes, total, back = run(place(by_row, x), place(_by_column, tree))
        np.testing.assert_array_equal(sizes, np.full(8, 8 // mesh.rows))
        assert float(total) == x.sum()
        np.testing.assert_array_equal(back["a"], tree["a"])
        devices = mesh.rows * mesh.model
        assert len(place(_by_column, tree)["a"].sharding.device_set if devices > 1 else [0]) == devices


def test_parameters_keep_their_names_on_a_mesh():
    with on_mesh(MeshConfig(2, 2, 2)):
        weights = place(of_base, nnx.Param(jnp.zeros((2, 4)), out_sharding=("experts", "heads")))
    assert weights.get_value().sharding.spec == P(("expert",), ("model",))
    assert weights.get_metadata()["out_sharding"] == ("experts", "heads")
