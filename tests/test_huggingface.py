"""Hugging Face directories: what transformers writes is read and written back the same; broken ones are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pefx.config import ModelConfig
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.huggingface import save_base
from pefx.loading import load_base
from pefx.model import Base
from tests.goldens.bases import BASES

GOLDENS = Path(__file__).parent / "goldens"  # written by transformers
TOKENIZER = Path(__file__).parent.parent / "assets" / "base" / "tokenizer.json"
ODD = ModelConfig(
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
    normalize_gates=True,
    dense_layers=(1,),
    rope_theta=10000.0,
    norm_epsilon=1e-6,
    tied_embedding=False,
    context=128,
    precision="float32",
)
PLAIN = ModelConfig(
    vocab_size=97,
    hidden=36,
    layers=4,
    heads=3,
    kv_heads=3,
    head_size=12,
    dense_hidden=44,
    expert_hidden=20,
    experts=7,
    experts_per_token=3,
    normalize_gates=False,
    dense_layers=(0, 2),
    rope_theta=1e6,
    norm_epsilon=1e-5,
    tied_embedding=True,
    context=96,
    precision="bfloat16",
)


def stored(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a directory: its type, shape and bytes."""
    out = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                value = opened.get_tensor(name)
                out[name] = (str(value.dtype), value.shape, value.tobytes())
    return out


@pytest.mark.parametrize(("name", "config"), [("odd", ODD), ("plain", PLAIN)])
def test_what_transformers_writes_is_the_shape_it_was_made_with(name: str, config: ModelConfig) -> None:
    assert read_config(GOLDENS / name) == config


@pytest.mark.parametrize("name", BASES)
def test_what_transformers_writes_is_read_and_written_back_the_same(name: str, tmp_path: Path) -> None:
    config = read_config(GOLDENS / name)
    base, digest = load_base(GOLDENS / name)
    assert base.config == config
    assert save_base(base, tmp_path, TOKENIZER) == digest
    assert stored(tmp_path) == stored(GOLDENS / name)
    assert read_config(tmp_path) == config
    assert load_base(tmp_path)[1] == digest
    assert (tmp_path / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()


def test_the_digest_is_of_what_is_stored_not_of_the_precision_it_is_loaded_at(tmp_path: Path) -> None:
    wide, digest = load_base(GOLDENS / "plain", "float32")
    assert wide.config == replace(PLAIN, precision="float32")
    assert wide.embed[...].dtype == np.float32
    assert digest == load_base(GOLDENS / "plain")[1]
    assert save_base(wide, tmp_path, TOKENIZER, precision="bfloat16") == digest
    assert stored(tmp_path) == stored(GOLDENS / "plain")


def test_the_digest_tells_weights_and_shapes_apart(tmp_path: Path) -> None:
    digests = {load_base(GOLDENS / "odd")[1], load_base(GOLDENS / "plain")[1]}
    for field, value in (("rope_parameters", {"rope_theta": 20000.0}), ("norm_topk_prob", False)):
        digests.add(load_base(changed(tmp_path / field, **{field: value}))[1])
    broken = copy(tmp_path / "weights")
    edit(broken, lambda tensors: tensors["model.norm.weight"].__setitem__(7, 3.0))
    digests.add(load_base(broken)[1])
    assert len(digests) == 5


def test_a_base_of_ours_is_read_back_to_the_bit(tmp_path: Path) -> None:
    config = replace(ODD, tied_embedding=True, dense_layers=(0,), precision="bfloat16")
    base = Base(config, nnx.Rngs(3))
    save_base(base, tmp_path, TOKENIZER, card="A base.\n")
    again, _ = load_base(tmp_path)
    assert again.config == config
    ours, theirs = nnx.to_flat_state(nnx.state(base)), nnx.to_flat_state(nnx.state(again))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        assert np.asarray(a[...]).tobytes() == np.asarray(b[...]).tobytes(), path
    assert (tmp_path / "README.md").read_text() == "A base.\n"
    assert not list(tmp_path.glob("*.partial"))


def copy(target: Path) -> Path:
    shutil.copytree(GOLDENS / "odd", target)
    return target


def changed(target: Path, **fields: object) -> Path:
    """The odd base with fields of its config.json replaced (None: removed)."""
    path = copy(target) / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return target


def edit(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


CONFIGS = {
    "unknown family": ({"model_type": "qwen9"}, "model_type 'qwen9' is not known"),
    "another head": ({"architectures": ["Qwen3MoeForTokenClassification"]}, "base is 'Qwen3MoeForCausalLM'"),
    "no family": ({"model_type": None}, "model_type None is not known"),
    "rope scaling": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
    "rope scaling, old form": ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type 'linear'"),
    "partial rotation": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "biases": ({"attention_bias": True}, "attention_bias is True, only False"),
    "other activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window"),
    "missing field": ({"num_local_experts": None}, "field 'num_experts' is missing"),
    "text for a size": ({"hidden_size": "40"}, "hidden_size is '40', must be a positive int"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be a positive int"),
    "number for a switch": ({"norm_topk_prob": 1}, "norm_topk_prob is 1, must be true or false"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_understood_is_refused(case: str, tmp_path: Path) -> None:
    fields, message = CONFIGS[case]
    directory = changed(tmp_path / "base", **fields)
    with pytest.raises(PefxError) as caught:
        load_base(directory)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


def refused(directory: Path) -> str:
    """The message a directory is refused with: one line that names it."""
    with pytest.raises(PefxError) as caught:
        load_base(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_directories_and_broken_json_are_refused(tmp_path: Path) -> None:
    assert "config.json: no such file" in refused(tmp_path / "nowhere")
    directory = copy(tmp_path / "base")
    (directory / "config.json").write_text('{"model_type": ')
    assert "config.json: cannot be read as JSON" in refused(directory)
    (directory / "config.json").write_text("[]")
    assert "config.json: must hold one JSON object" in refused(directory)


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    directory = copy(tmp_path / "missing")
    edit(directory, lambda tensors: tensors.pop(name))
    assert f"tensor '{name}' is missing" in refused(directory)

    directory = copy(tmp_path / "shape")
    edit(directory, lambda tensors: tensors.update({name: tensors[name].T.copy()}))
    assert f"tensor '{name}' has shape (40, 24), config.json says (24, 40)" in refused(directory)

    directory = copy(tmp_path / "extra")
    edit(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(60, np.float32)}))
    assert "tensor 'model.layers.0.self_attn.q_proj.bias' is not part of a qwen3_moe base" in refused(directory)

    directory = copy(tmp_path / "integers")
    edit(directory, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    assert f"tensor '{name}' is int8" in refused(directory)


def test_broken_and_absent_weight_files_are_refused(tmp_path: Path) -> None:
    directory = copy(tmp_path / "cut")
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 3, 0):
        file.write_bytes(whole[:size])
        assert "model.safetensors: not a readable safetensors file" in refused(directory)
    file.unlink()
    assert "holds no *.safetensors file" in refused(directory)

    shards = tmp_path / "shards"
    shutil.copytree(GOLDENS / "plain", shards)
    (shards / "model-00002-of-00004.safetensors").unlink()
    assert "is missing" in refused(shards)


def test_another_shape_than_the_config_says_is_refused(tmp_path: Path) -> None:
    """A tensor too many or too few, whichever field is wrong."""
    for field, value in {
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "head_dim": 20,
        "tie_word_embeddings": True,
        "mlp_only_layers": [],
        "vocab_size": 210,
    }.items():
        assert "tensor '" in refused(changed(tmp_path / field, **{field: value})), field


def test_a_copy_of_a_tied_embedding_is_no_part_of_the_base(tmp_path: Path) -> None:
    directory = changed(tmp_path / "base", tie_word_embeddings=True)
    edit(directory, lambda tensors: tensors.pop("lm_head.weight"))
    digest = load_base(directory)[1]
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    base, with_copy = load_base(directory)
    assert base.unembed is None
    assert with_copy == digest
    edit(directory, lambda tensors: tensors["lm_head.weight"].__setitem__((3, 4), 1.0))
    assert "tensor 'lm_head.weight' is not the embedding" in refused(directory)
