"""What is written as a PEFT directory is read back, in every layout; where numbers lie in it (what PEFT makes of it:
`tests/goldens`)."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file

from pefx.adapters.methods.table import Adapter, scale
from pefx.adapters.peft import find_adapters, read_peft
from pefx.adapters.peft_writing import Layout, write_peft
from pefx.adapters.sites import MATRICES
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from tests.peft_cases import CONFIGS, cases, delta, random_factors, sites_of

LAYOUTS: tuple[Layout, ...] = ("fused", "per_expert", "shared_outer")
EXPERTS = ("experts.gate_proj", "experts.up_proj", "experts.down_proj")
MOE = CONFIGS["qwen3_moe"]
SPEC = AdapterSpec("lora", 3, 6.0, ("q_proj", "o_proj", "up_proj", *EXPERTS, "unembed"))
FILES = ["adapter_config.json", "adapter_model.safetensors"]


def same(one: Adapter, other: Adapter) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        one[site][k].shape == other[site][k].shape and one[site][k].tobytes() == other[site][k].tobytes()
        for site in one
        for k in "ab"
    )


@settings(max_examples=60)
@given(cases())
def test_what_is_written_is_read_back_bit_for_bit(case: tuple[ModelConfig, AdapterSpec, int]) -> None:
    config, spec, seed = case
    adapter = random_factors(config, spec, seed)
    for layout in LAYOUTS:
        with TemporaryDirectory() as folder:
            write_peft(Path(folder) / "adapter", adapter, spec, config, layout)
            back, found = read_peft(Path(folder) / "adapter", config)
        if layout == "shared_outer" or spec.expert_form == "per_expert":
            assert found == spec, layout
            assert same(back, adapter), layout
            continue
        # Written out for each expert: another form of the same product.
        assert (found.method, found.rank, found.alpha, found.targets) == (
            spec.method,
            spec.rank,
            spec.alpha,
            spec.targets,
        )
        assert found.expert_form == "per_expert"
        want, got = delta(adapter, scale(spec), config), delta(back, scale(found), config)
        assert all(np.array_equal(want[site], got[site]) for site in want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_kept_or_made(layout: Layout, tmp_path: Path) -> None:
    half = random_factors(MOE, SPEC, 1, ml_dtypes.bfloat16)
    wide = {site: {k: x.astype(np.float32) for k, x in pair.items()} for site, pair in half.items()}
    write_peft(tmp_path / "half", half, SPEC, MOE, layout)
    write_peft(tmp_path / "narrowed", wide, SPEC, MOE, layout, precision="bfloat16")
    write_peft(tmp_path / "widened", half, SPEC, MOE, layout, precision="float32")
    assert {x.dtype for x in load_file(tmp_path / "half" / FILES[1]).values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name in ("half", "narrowed", "widened"):
        assert same(read_peft(tmp_path / name, MOE)[0], wide)
    assert (tmp_path / "half" / FILES[1]).read_bytes() == (tmp_path / "narrowed" / FILES[1]).read_bytes()


def tensors_of(
    directory: Path, layout: Layout, spec: AdapterSpec = SPEC
) -> tuple[Adapter, dict[str, np.ndarray], dict]:
    adapter = random_factors(MOE, spec, 2)
    write_peft(directory, adapter, spec, MOE, layout, base_name="a/base")
    tensors = load_file(directory / FILES[1])
    named = {name.removeprefix("base_model.model."): x for name, x in tensors.items()}
    return adapter, named, json.loads((directory / FILES[0]).read_text())


def test_fused_factors_have_experts_slowest_in_a_and_fastest_in_b(tmp_path: Path) -> None:
    adapter, tensors, fields = tensors_of(tmp_path / "x", "fused")
    experts, rank, wide = MOE.experts, SPEC.rank, MOE.expert_hidden
    module = "model.layers.2.mlp.experts"  # the second layer with experts
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    joint_a, joint_b = (tensors[f"{module}.base_layer.lora_{x}.weight"] for x in "AB")
    assert (a.shape, b.shape) == ((experts * rank, wide), (MOE.hidden, rank * experts))
    for e in range(experts):
        np.testing.assert_array_equal(a[e * rank : (e + 1) * rank], adapter["experts.down_proj"]["a"][1, e])
        np.testing.assert_array_equal(b[:, e::experts].T, adapter["experts.down_proj"]["b"][1, e])
        own_a, own_b = joint_a[2 * e * rank : 2 * (e + 1) * rank], joint_b[:, e::experts]
        np.testing.assert_array_equal(own_a[:rank], adapter["experts.gate_proj"]["a"][1, e])
        np.testing.assert_array_equal(own_a[rank:], adapter["experts.up_proj"]["a"][1, e])
        np.testing.assert_array_equal(own_b[:wide, :rank].T, adapter["experts.gate_proj"]["b"][1, e])
        np.testing.assert_array_equal(own_b[wide:, rank:].T, adapter["experts.up_proj"]["b"][1, e])
        assert not own_b[wide:, :rank].any()
        assert not own_b[:wide, rank:].any()
    assert fields["rank_pattern"] == {"mlp.experts.gate_up_proj": 6}
    assert fields["alpha_pattern"] == {"mlp.experts.gate_up_proj": 12}
    assert fields["target_modules"] == ["lm_head", "o_proj", "q_proj"]
    assert fields["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.up_proj.weight"]
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (3, 6, "a/base")


def test_an_expert_has_modules_of_its_own(tmp_path: Path) -> None:
    adapter, tensors, fields = tensors_of(tmp_path / "x", "per_expert")
    module = "model.layers.0.mlp.experts.4.up_proj"
    np.testing.assert_array_equal(tensors[f"{module}.lora_A.weight"], adapter["experts.up_proj"]["a"][0, 4])
    np.testing.assert_array_equal(tensors[f"{module}.lora_B.weight"].T, adapter["experts.up_proj"]["b"][0, 4])
    assert "experts.4.up_proj" in fields["target_modules"]
    assert "up_proj" not in fields["target_modules"]  # a dense layer has one, too, and it is a parameter
    assert fields["target_parameters"] == ["mlp.up_proj.weight"]


@pytest.mark.parametrize("form", ["per_expert", "shared_hidden"])
def test_stacks_have_one_matrix_where_experts_share_it(form, tmp_path: Path) -> None:
    spec = AdapterSpec("lora", 3, 6.0, EXPERTS, form)
    adapter, tensors, _ = tensors_of(tmp_path / "x", "shared_outer", spec)
    experts, shared = MOE.experts, 1 if form == "shared_hidden" else MOE.experts
    for name in ("gate_proj", "up_proj"):
        module, pair = f"model.layers.2.mlp.experts.{name}", adapter[f"experts.{name}"]
        assert tensors[f"{module}.lora_A.weight"].shape == (shared, 3, MOE.hidden)
        np.testing.assert_array_equal(
            tensors[f"{module}.lora_A.weight"][-1], pair["a"][1].reshape(-1, 3, MOE.hidden)[-1]
        )
        np.testing.assert_array_equal(tensors[f"{module}.lora_B.weight"], pair["b"][1].swapaxes(1, 2))
    module = "model.layers.2.mlp.experts.down_proj"
    assert tensors[f"{module}.lora_A.weight"].shape == (experts, 3, MOE.expert_hidden)
    assert tensors[f"{module}.lora_B.weight"].shape == (shared, MOE.hidden, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_adapters_make_equal_files_and_others_are_not_overwritten(layout: Layout, tmp_path: Path) -> None:
    adapter = random_factors(MOE, SPEC, 3)
    turned = {site: dict(reversed(pair.items())) for site, pair in reversed(adapter.items())}
    for name, x in (("one", adapter), ("other", turned), ("one", turned)):
        write_peft(tmp_path / name, x, SPEC, MOE, layout)
    one, other = ([(tmp_path / x / file).read_bytes() for file in FILES] for x in ("one", "other"))
    assert one == other
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    adapter["q_proj"]["a"][0, 0, 0] += 1
    with pytest.raises(PefxError, match="is another adapter's; remove it") as caught:
        write_peft(tmp_path / "one", adapter, SPEC, MOE, layout)
    assert caught.value.kind == "conflict"
    assert [(tmp_path / "one" / file).read_bytes() for file in FILES] == one


def test_a_directory_that_is_there_gets_the_files_it_lacks(tmp_path: Path) -> None:
    adapter = random_factors(MOE, SPEC, 3)
    (tmp_path / "README.md").write_text("mine")
    write_peft(tmp_path, adapter, SPEC, MOE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", *FILES]
    (tmp_path / FILES[0]).unlink()
    write_peft(tmp_path, adapter, SPEC, MOE)
    assert same(read_peft(tmp_path, MOE)[0], adapter)


@pytest.mark.parametrize("there", [False, True])
def test_a_writer_that_fails_leaves_nothing_to_find(there: bool, tmp_path: Path, monkeypatch) -> None:
    if there:
        (tmp_path / "x").mkdir()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PefxError, match=r"x: cannot be written \(no space left") as caught:
        write_peft(tmp_path / "x", random_factors(MOE, SPEC), SPEC, MOE)
    assert caught.value.kind == "storage"
    assert find_adapters(tmp_path) == []


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    def refused(kind: str, match: str, adapter: Adapter, **other) -> None:
        with pytest.raises(PefxError, match=match) as caught:
            write_peft(tmp_path / "x", adapter, SPEC, MOE, **other)
        assert caught.value.kind == kind
        assert not (tmp_path / "x").exists()

    adapter = random_factors(MOE, SPEC)
    refused("bad_adapter", "lacks site 'q_proj'", {k: v for k, v in adapter.items() if k != "q_proj"})
    thin = {**adapter, "q_proj": {k: x[:, :2] for k, x in adapter["q_proj"].items()}}
    refused("bad_adapter", "q_proj.a has shape", thin)
    whole = {**adapter, "q_proj": {k: x.astype(np.int32) for k, x in adapter["q_proj"].items()}}
    refused("bad_adapter", "q_proj.a is int32; an adapter is float32", whole)
    adapter["o_proj"]["b"][1, 0, 2] = np.inf
    refused("not_finite", "o_proj.b has 1 NaN or infinite values", adapter)
    adapter["o_proj"]["b"][1, 0, 2] = 3.4e38
    refused("not_finite", "o_proj.b has 1 NaN or infinite values of 90 in bfloat16", adapter, precision="bfloat16")


def test_every_site_of_every_family_is_written() -> None:
    assert {site for config in CONFIGS.values() for site in sites_of(config)} == set(MATRICES)


@pytest.mark.parametrize("layout", ["fused", "per_expert"])
@pytest.mark.parametrize("name", ["everything", "latent_and_experts", "per_expert", "ranks", "half", "some_layers"])
def test_peft_loads_what_is_written(name: str, layout: Layout) -> None:
    """Where torch, transformers and PEFT are installed; they are not needed otherwise."""
    generate = pytest.importorskip("tests.goldens.generate", exc_type=ImportError)
    if layout not in generate.loadable(name):
        pytest.skip("rsLoRA of experts: PEFT itself gets the scale wrong")
    assert generate.export_apart(name, layout) <= generate.TOLERANCE


@pytest.mark.parametrize("case", ["shared", "gate alone", "gate and up", "all of deepseek", "all of glm"])
def test_peft_computes_of_what_is_written_what_a_merged_base_does(case: str) -> None:
    """As above, for adapters that PEFT itself would not write."""
    generate = pytest.importorskip("tests.goldens.generate", exc_type=ImportError)
    assert generate.random_apart(*generate.RANDOM[case]) <= generate.TOLERANCE
