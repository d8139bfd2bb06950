"""PEFT directories are read into our form (their numbers: law 7), or refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pefx.adapters.methods.table import leaf_shapes, scale
from pefx.adapters.peft import find_adapters, read_peft
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from tests.peft_cases import CONFIGS, numbers, put

GOLDENS = Path(__file__).parent / "goldens" / "adapters"  # written by PEFT
MODEL = ModelConfig(
    vocab_size=211,
    hidden=40,
    layers=3,
    heads=6,
    kv_heads=2,
    head_size=10,
    dense_hidden=56,
    expert_hidden=24,
    experts=5,
    experts_per_token=2,
    dense_layers=(1,),
)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE = ("gate_proj", "up_proj", "down_proj")
EXPERTS = ("experts.gate_proj", "experts.up_proj", "experts.down_proj")
SPECS = {
    "attention": AdapterSpec("lora", 4, 8.0, ATTENTION),
    "dense": AdapterSpec("rslora", 3, 5.0, DENSE),
    "experts": AdapterSpec("lora", 2, 4.0, EXPERTS),
    "unembed": AdapterSpec("lora", 5, 5.0, ("unembed",)),
    "everything": AdapterSpec("rslora", 6, 7.0, (*ATTENTION, *DENSE, *EXPERTS, "unembed")),
    "per_expert": AdapterSpec("lora", 3, 6.0, EXPERTS),
}
PREFIX = "base_model.model.model.layers."


@pytest.mark.parametrize("name", SPECS)
def test_every_layout_gives_its_spec_and_shapes(name: str) -> None:
    adapter, spec = read_peft(GOLDENS / name, MODEL)
    assert spec == SPECS[name]
    assert {site: {k: v.shape for k, v in pair.items()} for site, pair in adapter.items()} == leaf_shapes(MODEL, spec)
    assert {value.dtype for pair in adapter.values() for value in pair.values()} == {np.dtype(np.float32)}


def test_each_number_goes_to_its_own_layer_and_expert() -> None:
    tensors = load_file(GOLDENS / "everything" / "adapter_model.safetensors")
    adapter, _ = read_peft(GOLDENS / "everything", MODEL)
    rank, experts, wide = 6, MODEL.experts, MODEL.expert_hidden
    np.testing.assert_array_equal(adapter["k_proj"]["a"][2], tensors[PREFIX + "2.self_attn.k_proj.lora_A.weight"])
    np.testing.assert_array_equal(adapter["o_proj"]["b"][1].T, tensors[PREFIX + "1.self_attn.o_proj.lora_B.weight"])
    np.testing.assert_array_equal(adapter["down_proj"]["a"][0], tensors[PREFIX + "1.mlp.down_proj.lora_A.weight"])
    a = tensors[PREFIX + "2.mlp.experts.base_layer.lora_A.weight"]
    b = tensors[PREFIX + "2.mlp.experts.base_layer.lora_B.weight"]
    for site, half in (("experts.gate_proj", slice(0, wide)), ("experts.up_proj", slice(wide, None))):
        for e in range(experts):  # the second expert layer is global layer 2
            np.testing.assert_array_equal(adapter[site]["a"][1, e], a[e * rank : (e + 1) * rank])
            np.testing.assert_array_equal(adapter[site]["b"][1, e].T, b[half, e::experts])


def copy(target: Path, name: str = "attention") -> Path:
    shutil.copytree(GOLDENS / name, target)
    return target


def edit(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def configure(directory: Path, **fields: object) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory


def test_factors_on_the_other_side_are_the_same_adapter(tmp_path: Path) -> None:
    """Older versions of PEFT take `[out, in]` for `[in, out]`: A and B change sides, and so do their expert axes."""

    def turn(tensors: dict[str, np.ndarray]) -> None:
        for key in [k for k in tensors if ".lora_A." in k]:
            other = key.replace("lora_A", "lora_B")
            a, b, experts = tensors[key], tensors[other], MODEL.experts
            rank = a.shape[0] // experts
            tensors[key] = b.reshape(-1, rank, experts).transpose(2, 1, 0).reshape(experts * rank, -1).copy()
            tensors[other] = a.reshape(experts, rank, -1).transpose(2, 1, 0).reshape(-1, rank * experts).copy()

    turned, spec = read_peft(edit(copy(tmp_path / "turned", "experts"), turn), MODEL)
    straight, same = read_peft(GOLDENS / "experts", MODEL)
    assert spec == same
    for site, pair in straight.items():
        for name, value in pair.items():
            np.testing.assert_array_equal(turned[site][name], value)


def square(directory: Path) -> Path:
    """Fused factors for a base whose experts are as wide inside as outside."""
    rng = np.random.default_rng(0)

    def change(tensors: dict[str, np.ndarray]) -> None:
        for key in list(tensors):
            if "base_layer" in key:
                tensors[key] = rng.normal(size=(10, 40) if "lora_A" in key else (80, 10)).astype(np.float32)
            else:
                tensors[key] = rng.normal(size=(10, 40) if "lora_A" in key else (40, 10)).astype(np.float32)

    return edit(directory, change)


def test_square_experts_are_read_only_if_the_version_settles_the_sides(tmp_path: Path) -> None:
    base = replace(MODEL, expert_hidden=40)
    directory = square(copy(tmp_path / "square", "experts"))
    adapter, _ = read_peft(directory, base)
    tensors = load_file(directory / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        adapter["experts.down_proj"]["a"][0, 1], tensors[PREFIX + "0.mlp.experts.lora_A.weight"][2:4]
    )
    assert "square" in refused(configure(directory, peft_version="0.18.0"), base)
    assert "square" in refused(configure(directory, peft_version=None), base)


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    def narrow(tensors: dict[str, np.ndarray]) -> None:
        tensors.update({key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()})

    directory = edit(copy(tmp_path / "half"), narrow)
    adapter, _ = read_peft(directory, MODEL)
    exact, _ = read_peft(GOLDENS / "attention", MODEL)
    want = exact["v_proj"]["b"].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert adapter["v_proj"]["b"].dtype == np.float32
    np.testing.assert_array_equal(adapter["v_proj"]["b"], want)


def refused(directory: Path, config: ModelConfig = MODEL) -> str:
    """The message a directory is refused with: one line that names it."""
    with pytest.raises(PefxError) as caught:
        read_peft(directory, config)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FIELDS = {
    "other method": ({"peft_type": "IA3"}, "peft_type is 'IA3', only 'LORA'"),
    "DoRA": ({"use_dora": True}, "use_dora is True"),
    "bias": ({"bias": "all"}, "bias is 'all'"),
    "LoRA bias": ({"lora_bias": True}, "lora_bias is True"),
    "a rank that is none": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of 'q_proj' must be a positive integer"),
    "an alpha of nothing": ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern of 'q_proj' must be a number, not zero"),
    "ranks in a list": ({"rank_pattern": [4]}, "rank_pattern is [4], must be an object"),
    "a broken expression": ({"rank_pattern": {"q_(": 4}}, "'q_(' of rank_pattern is no regular expression"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
    "layers by name": ({"layers_to_transform": ["first"]}, "layers_to_transform is ['first'], must be numbers"),
    "layers of another base": ({"layers_to_transform": [0], "layers_pattern": ["h"]}, "layers_pattern is ['h']"),
    "layers of an expression": ({"layers_to_transform": 0, "target_modules": ".*"}, "needs a list of target_modules"),
    "targets that are none": ({"target_modules": {"q": 1}}, "target_modules is {'q': 1}, must be a list of names"),
    "new tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
    "a field of tomorrow": ({"use_hindsight": {"x": 1}}, "use_hindsight is {'x': 1}"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base"),
    "no rank": ({"r": None}, "r must be a positive integer, got None"),
    "text for alpha": ({"lora_alpha": "8"}, "lora_alpha must be a number, not zero, got '8'"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_config_that_cannot_be_expressed_is_refused(case: str, tmp_path: Path) -> None:
    fields, message = FIELDS[case]
    found = refused(configure(copy(tmp_path / "adapter"), **fields))
    assert message in found
    assert "adapter_config.json" in found


Q0 = PREFIX + "0.self_attn.q_proj"


def rename(old: str, new: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def add(key: str, *shape: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({key: np.ones(shape, np.float32)})


TENSORS: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], object], str]] = {
    "the router": ("attention", rename("0.self_attn.q_proj", "0.mlp.gate"), "layers.0.mlp.gate' is no module"),
    "attention in the mlp": ("attention", rename("0.self_attn.q_proj", "0.mlp.q_proj"), "mlp.q_proj' is no module"),
    "a magnitude": ("attention", add(Q0 + ".lora_magnitude_vector.weight", 60), "lora_magnitude_vector.weight' is no"),
    "an embedding": ("attention", add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 211), "is no LoRA"),
    "half a pair": ("attention", lambda t: t.pop(Q0 + ".lora_B.weight"), "q_proj' lacks its lora_B"),
    "a layer too few": ("attention", lambda t: [t.pop(f"{Q0}.lora_{x}.weight") for x in "AB"], "not in layer 0"),
    "a layer too many": ("attention", rename("layers.2.", "layers.3."), "whose layers with k_proj are [0, 1, 2]"),
    "experts in a dense layer": ("experts", rename("layers.0.", "layers.1."), "are [0, 2]"),
    "an expert too many": ("per_expert", rename("experts.4.", "experts.5."), "is not in this base"),
    "an expert too few": (
        "per_expert",
        lambda t: [t.pop(k) for k in list(t) if "2.mlp.experts.3.up" in k],
        "not in layer 2 expert 3",
    ),
    "another rank": (
        "attention",
        lambda t: (add(Q0 + ".lora_A.weight", 2, 40)(t), add(Q0 + ".lora_B.weight", 60, 2)(t)),
        "has rank 2, adapter_config.json says 4",
    ),
    "other widths": ("attention", add(Q0 + ".lora_A.weight", 4, 41), "has a of shape (4, 41), this base needs (4, 40)"),
    "factors that do not multiply": ("attention", add(Q0 + ".lora_A.weight", 3, 40), "do not multiply"),
    "fused of another width": (
        "experts",
        add(PREFIX + "0.mlp.experts.lora_A.weight", 10, 23),
        "maps 23 to 40; this base's fused experts map",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_have_no_place_are_refused(case: str, tmp_path: Path) -> None:
    name, change, message = TENSORS[case]
    assert message in refused(edit(copy(tmp_path / "adapter", name), change))


def test_an_adapter_for_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    assert "no multiple of this base's 7 experts" in refused(
        copy(tmp_path / "adapter", "experts"), replace(MODEL, experts=7)
    )


def test_broken_and_absent_files_are_refused(tmp_path: Path) -> None:
    assert "adapter_config.json: no such file" in refused(tmp_path / "nowhere")
    directory = copy(tmp_path / "adapter")
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "adapter_model.safetensors: not a readable safetensors file" in refused(directory)
    save_file({}, file)
    assert "holds no tensors" in refused(directory)
    file.unlink()
    assert "adapter_model.safetensors: no such file" in refused(directory)
    for text, message in (("{", "cannot be read as JSON"), ("[]", "must hold one JSON object")):
        (directory / "adapter_config.json").write_text(text)
        assert message in refused(directory)


def written(directory: Path, modules: dict[str, tuple[int, int]]) -> Path:
    """A PEFT directory of rank 2 over modules (their widths in and out), numbers of their own."""
    rng, tensors = np.random.default_rng(0), {}
    for module, (reads, writes) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(2, reads)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(writes, 2)).astype(np.float32)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return directory


def test_shared_experts_and_latents_are_read_by_the_names_of_their_family(tmp_path: Path) -> None:
    config = replace(
        MODEL, family="deepseek_v3", layers=2, dense_layers=(0,), shared_experts=2, head_size=0, query_rank=18,
        kv_rank=14, nope_head_size=6, rope_head_size=4, value_head_size=8,
    )  # fmt: skip
    attention = {
        "q_a_proj": (40, 18),
        "q_b_proj": (18, 60),
        "kv_a_proj_with_mqa": (40, 18),
        "kv_b_proj": (14, 84),
        "o_proj": (48, 40),
    }
    modules = {f"model.layers.{i}.self_attn.{name}": widths for i in range(2) for name, widths in attention.items()}
    modules |= {f"model.layers.1.mlp.shared_experts.{name}_proj": (40, 48) for name in ("gate", "up")}
    modules["model.layers.0.mlp.gate_proj"] = (40, 56)
    directory = written(tmp_path / "adapter", modules)
    adapter, spec = read_peft(directory, config)
    assert spec.targets == (
        "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj", "gate_proj", "shared_experts.gate_proj",
        "shared_experts.up_proj",
    )  # fmt: skip
    tensors = load_file(directory / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        adapter["kv_a_proj"]["a"][1], tensors[PREFIX + "1.self_attn.kv_a_proj_with_mqa.lora_A.weight"]
    )
    np.testing.assert_array_equal(
        adapter["shared_experts.up_proj"]["b"][0].T, tensors[PREFIX + "1.mlp.shared_experts.up_proj.lora_B.weight"]
    )
    assert "q_proj' is not in this base" in refused(
        written(tmp_path / "plain", {"model.layers.0.self_attn.q_proj": (40, 60)}), config
    )
    assert "up_proj' is not in this base, whose layers with shared_experts.up_proj are [1]" in refused(
        written(tmp_path / "dense", {"model.layers.0.mlp.shared_experts.up_proj": (40, 48)}), config
    )


QWEN = CONFIGS["qwen3"]  # 3 dense layers, hidden 10, 3 heads of 8


def attention(sites: dict[str, int], layers: tuple[int, ...] = (0, 1, 2)) -> dict[str, np.ndarray]:
    """Tensors of projections, each of a rank."""
    widths, tensors = {"q_proj": (10, 24), "k_proj": (10, 8), "v_proj": (10, 8), "o_proj": (24, 10)}, {}
    for layer in layers:
        for seed, (site, rank) in enumerate(sites.items(), 7 * layer):
            reads, writes = widths[site]
            module = f"model.layers.{layer}.self_attn.{site}"
            tensors[f"{module}.lora_A.weight"] = numbers((rank, reads), seed)
            tensors[f"{module}.lora_B.weight"] = numbers((writes, rank), seed + 50)
    return tensors


def test_lower_ranks_are_padded_and_other_scales_folded_into_b(tmp_path: Path) -> None:
    tensors = attention({"q_proj": 4, "k_proj": 6, "v_proj": 2, "o_proj": 4})
    fields = {"r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 6, "v_proj": 2}, "alpha_pattern": {"k_proj": 12}}
    adapter, spec = read_peft(put(tmp_path / "x", fields, tensors), QWEN)
    assert (spec.rank, spec.alpha) == (6, 12.0)  # the scale of most is 2: of q, k and o; v has 4
    for site, rank, ratio in (("q_proj", 4, 1), ("k_proj", 6, 1), ("v_proj", 2, 2), ("o_proj", 4, 1)):
        name = f"model.layers.1.self_attn.{site}"
        a, b = adapter[site]["a"][1], adapter[site]["b"][1]
        np.testing.assert_array_equal(a[:rank], tensors[f"{name}.lora_A.weight"])
        np.testing.assert_array_equal(b[:rank], ratio * tensors[f"{name}.lora_B.weight"].T)
        assert not a[rank:].any()
        assert not b[rank:].any()


def test_a_scale_that_no_alpha_names_is_kept(tmp_path: Path) -> None:
    """rsLoRA: the highest rank is not that of most, whose scale is 3 / sqrt(2)."""
    tensors = attention({"q_proj": 2, "k_proj": 2, "v_proj": 5})
    fields = {"r": 2, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"v_proj": 5}}
    adapter, spec = read_peft(put(tmp_path / "x", fields, tensors), QWEN)
    assert (spec.rank, spec.method) == (5, "rslora")
    assert abs(scale(spec) - 3 / 2**0.5) < 1e-12
    np.testing.assert_array_equal(
        adapter["q_proj"]["b"][2][:2], tensors["model.layers.2.self_attn.q_proj.lora_B.weight"].T
    )
    b = tensors["model.layers.2.self_attn.v_proj.lora_B.weight"].T
    np.testing.assert_allclose(adapter["v_proj"]["b"][2], b * (2 / 5) ** 0.5, rtol=1e-6)


def test_layers_that_are_left_out_are_zeros(tmp_path: Path) -> None:
    fields = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0, 2]}
    tensors = attention({"q_proj": 2, "k_proj": 2}, (0, 2))
    adapter, _ = read_peft(put(tmp_path / "x", fields, tensors), QWEN)
    assert not any(pair[k][1].any() for pair in adapter.values() for k in "ab")
    np.testing.assert_array_equal(adapter["k_proj"]["a"][2], tensors["model.layers.2.self_attn.k_proj.lora_A.weight"])


@pytest.mark.parametrize(
    ("layers", "there", "message"),
    [
        ([0, 2], (0,), "q_proj is adapted, but not in layer 2"),
        ([0, 2], (0, 1, 2), "layers.1.self_attn.q_proj' is adapted, but layers_to_transform in adapter_config.json is"),
        (None, (0, 2), "q_proj is adapted, but not in layer 1"),
    ],
)
def test_layers_are_those_that_the_configuration_says(layers, there, message: str, tmp_path: Path) -> None:
    fields = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": layers}
    assert message in refused(put(tmp_path / "x", fields, attention({"q_proj": 2}, there)), QWEN)


def test_targets_may_name_layers(tmp_path: Path) -> None:
    fields = {"r": 2, "lora_alpha": 2, "target_modules": ["layers.1.self_attn.q_proj", "k_proj"]}
    tensors = attention({"k_proj": 2}) | attention({"q_proj": 2}, (1,))
    adapter, _ = read_peft(put(tmp_path / "x", fields, tensors), QWEN)
    assert [bool(adapter["q_proj"]["a"][layer].any()) for layer in range(3)] == [False, True, False]
    fields["target_modules"] = r".*layers\.[01]\.self_attn\.[qk]_proj"
    tensors = attention({"q_proj": 2, "k_proj": 2}, (0, 1))
    assert read_peft(put(tmp_path / "y", fields, tensors), QWEN)[1].targets == ("q_proj", "k_proj")
    del (
        tensors["model.layers.1.self_attn.k_proj.lora_A.weight"],
        tensors["model.layers.1.self_attn.k_proj.lora_B.weight"],
    )
    assert "k_proj is adapted, but not in layer 1" in refused(put(tmp_path / "z", fields, tensors), QWEN)


def test_a_target_without_any_tensor_is_refused(tmp_path: Path) -> None:
    fields = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj", "elsewhere"]}
    directory = put(tmp_path / "x", fields, attention({"q_proj": 2}))
    assert "targets 'v_proj', but no tensor of it is there" in refused(directory, QWEN)


KINDS = {
    "wrong_rank": lambda t: t.update({"model.layers.1.self_attn.q_proj.lora_A.weight": numbers((3, 10), 0)}),
    "wrong_target": lambda t: t.update({"model.layers.1.self_attn.q_proj.lora_magnitude_vector": numbers((24,), 0)}),
    "not_finite": lambda t: t["model.layers.1.self_attn.q_proj.lora_A.weight"].__setitem__((0, 3), np.nan),
}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_have_kinds(kind: str, tmp_path: Path) -> None:
    tensors = attention({"q_proj": 2})
    KINDS[kind](tensors)
    with pytest.raises(PefxError, match=r"model.layers.1.self_attn.q_proj") as caught:
        read_peft(put(tmp_path / "x", {"r": 2, "lora_alpha": 2}, tensors), QWEN)
    assert caught.value.kind == kind


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_types_are_widened_and_others_refused(dtype, tmp_path: Path) -> None:
    tensors = attention({"q_proj": 2})
    narrow = {name: x.astype(dtype) for name, x in tensors.items()}
    adapter, _ = read_peft(put(tmp_path / "x", {"r": 2, "lora_alpha": 2}, narrow), QWEN)
    want = narrow["model.layers.2.self_attn.q_proj.lora_A.weight"].astype(np.float32)
    np.testing.assert_array_equal(adapter["q_proj"]["a"][2], want)
    wide = {name: x.astype(np.float64) for name, x in tensors.items()}
    assert "is float64; an adapter is" in refused(put(tmp_path / "y", {"r": 2, "lora_alpha": 2}, wide), QWEN)


def test_goldens_with_patterns_have_the_scales_of_their_modules() -> None:
    """Their logits: law 7."""
    adapter, spec = read_peft(GOLDENS / "ranks", MODEL)
    assert (spec.rank, spec.alpha / spec.rank) == (6, 2.0)
    tensors = load_file(GOLDENS / "ranks" / "adapter_model.safetensors")
    b = tensors[PREFIX + "1.self_attn.k_proj.lora_B.weight"].T * np.float32(3 / 4 / 2)
    np.testing.assert_array_equal(adapter["k_proj"]["b"][1][:4], b)
    some, _ = read_peft(GOLDENS / "some_layers", read_config(GOLDENS.parent / "qwen3"))
    assert [bool(some["up_proj"]["a"][layer].any()) for layer in range(3)] == [False, True, False]
    assert [bool(some["q_proj"]["a"][layer].any()) for layer in range(3)] == [True, False, True]


def test_adapters_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/2", "a/10", "a", ".c.12.partial"):
        put(tmp_path / name, {"r": 2, "lora_alpha": 2}, attention({"q_proj": 2}))
    (tmp_path / "empty").mkdir()
    assert find_adapters(tmp_path) == [tmp_path / name for name in ("a", "a/10", "a/2", "b")]
    assert find_adapters(tmp_path / "b") == [tmp_path / "b"]
    assert find_adapters(tmp_path / "empty") == []
    with pytest.raises(PefxError, match="nowhere: no such directory"):
        find_adapters(tmp_path / "nowhere")
