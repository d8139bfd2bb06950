"""`pefx plan` on a slice: compiles the true steps of a small base, says what fits, and refuses what is no plan."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from pefx.adapters.bank import empty_bank
from pefx.config import AdapterSpec, MeshConfig, ModelConfig, PlanConfig, ServeConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.planning import abstract
from pefx.planning.abstract import model_of, plan_of
from pefx.planning.report import Planned, advice, compare, picture, plan, render
from pefx.planning.roofline import active_weights, adapter_weights, attended
from pefx.planning.run import beside, plan_and_print
from pefx.presets import PRESETS

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = ModelConfig(
    vocab_size=512, hidden=256, layers=2, heads=4, kv_heads=4, head_size=128, dense_hidden=256, expert_hidden=128,
    experts=8, experts_per_token=2, dense_layers=(), context=512,
)  # fmt: skip
CONFIG = PlanConfig(
    name="small",
    base="small",
    topology="v5e:2x2",
    mesh=MeshConfig(1, 2, 2),
    adapter=AdapterSpec(rank=8, targets=("q_proj", "experts.down_proj")),
    tokens_per_user=128,
    context=256,
    sequences=4,
    step_tokens=64,
)


@pytest.fixture(name="planned", scope="module")
def make_planned() -> Planned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(abstract.PRESETS, "small", SMALL)
        return plan(CONFIG)


@needs_libtpu
def test_both_steps_are_compiled_and_what_lies_where_is_told(planned: Planned, tmp_path: Path) -> None:
    assert planned.fits
    assert [step.step for step in planned.steps] == ["train", "serve"]
    assert planned.devices == 4
    experts = SMALL.layers * SMALL.experts * 3 * SMALL.hidden * SMALL.expert_hidden
    assert planned.held["base"] > experts * 2 // 4  # bfloat16, divided by expert and model
    assert planned.held["optimizer"] > 2 * planned.held["bank"] * 0.99
    for step in planned.steps:
        assert step.kernels > 0
        assert (step.traffic or {})["ragged-all-to-all"] > 0  # tokens travel to their experts
        assert (step.traffic or {})["all-reduce"] > 0  # partial sums of divided widths
    text = render(planned)
    for words in (
        "v5e:2x2",
        "1 x 2 x 2 (data, expert, model)",
        "keys and values",
        "adapters that fit",
        "tokens/s at most",
    ):
        assert words in text
    assert planned.more_adapters["train"] > 1000
    picture([planned, planned], tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert compare([planned, planned]).count("yes") == 2


@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_to_change(planned: Planned) -> None:
    tight = replace(planned, steps=[replace(step, capacity=1 << 20) for step in planned.steps])
    assert not tight.fits
    words = "; ".join(advice(tight))
    assert "train needs" in words
    assert "GiB more than a device has" in words
    assert "base-weights int8" in words
    failed = replace(planned, steps=[replace(planned.steps[0], needed=20 << 30, capacity=16 << 30), planned.steps[1]])
    assert not failed.fits
    assert "fewer tokens_per_user" in "; ".join(advice(failed))


@needs_libtpu
def test_a_mesh_of_other_size_and_an_unknown_slice_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(abstract.PRESETS, "small", SMALL)
    for change, words in (
        ({"mesh": MeshConfig(2, 2, 2)}, r"2 x 2 x 2 \(data, expert, model\), 8 devices; v5e:2x2 has 4"),
        ({"mesh": MeshConfig(0, 3, 1)}, "expert x model is 3, which does not divide the 4 devices"),
        ({"mesh": MeshConfig(1, 1, 8)}, "'mesh.model' is 8, which does not divide the base's heads"),
        ({"topology": "v5e:3x5"}, "topology 'v5e:3x5' cannot be compiled for"),
        ({"base": "nothing"}, "no such folder, and no preset"),
    ):
        with pytest.raises(PefxError, match=words):
            plan_and_print(replace(CONFIG, **change), None, (), None)


def test_what_is_met_by_a_token() -> None:
    model = PRESETS["qwen3-30b-a3b"]
    assert active_weights(model) == pytest.approx(3.0e9, rel=0.05)  # A3B, without the embedding
    assert active_weights(PRESETS["kimi-k2"]) == pytest.approx(32e9, rel=0.05)
    assert attended(model) == 2 * 48 * 32 * 256


def test_a_config_of_a_run_becomes_a_plan() -> None:
    users = (UserConfig("a", "a"), UserConfig("b", "b", adapter=AdapterSpec(rank=4)))
    planned = plan_of(TrainConfig(name="t", output="o", base="assets/base", users=users), "v6e:2x2")
    assert (planned.users, planned.slots, planned.adapter.rank) == (2, 2, 8)
    assert model_of(planned).hidden == 192
    assert plan_of(ServeConfig(name="s", base="assets/base", max_rank=5), "v6e:2x2").adapter.rank == 5
    with pytest.raises(PefxError, match="'users' is empty"):
        plan_of(TrainConfig(name="t", output="o"), "v6e:2x2")


def test_a_slice_beside_it_may_have_a_mesh_of_its_own() -> None:
    assert beside(CONFIG, "v5e:4x4").mesh == MeshConfig(0, 2, 2)
    assert beside(CONFIG, "v5e:4x4/2x4x2").mesh == MeshConfig(2, 4, 2)
    with pytest.raises(PefxError, match="a mesh is data x expert x model"):
        beside(CONFIG, "v5e:4x4/2x4")


def test_adapters_count_what_a_token_meets_of_them() -> None:
    model = PRESETS["qwen3-30b-a3b"]
    spec = AdapterSpec(rank=1, targets=("experts.up_proj",))
    bank = jax.eval_shape(lambda: empty_bank(model, spec, 3))
    padded = 8  # the rank a bank is allocated at
    assert adapter_weights(CONFIG, model, bank) == model.layers * 8 * padded * (model.hidden + model.expert_hidden)
