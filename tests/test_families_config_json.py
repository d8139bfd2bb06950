"""config.json: published ones are read into the published shapes; what cannot be read or written is refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pefx.config import ModelConfig, YarnConfig
from pefx.errors import PefxError
from pefx.families.config_json import config_json, extra_prefixes, read_config
from pefx.presets import PRESETS

# As the publishers wrote them, for transformers 4.
LATENT = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "kv_lora_rank": 512,
    "moe_layer_freq": 1, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "pretraining_tp": 1,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "model_type": "deepseek_v3", "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "n_group": 8, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "topk_group": 4,
    "vocab_size": 129280,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip
MOONLIGHT = LATENT | {
    "model_type": "deepseek_v3", "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 11264,
    "max_position_embeddings": 8192, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "num_nextn_predict_layers": 0, "q_lora_rank": None, "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "topk_group": 1, "vocab_size": 163840,
}  # fmt: skip
GLM = {
    "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "attention_bias": True, "head_dim": 128,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288,
    "max_position_embeddings": 131072, "moe_intermediate_size": 1536, "n_group": 1, "n_routed_experts": 160,
    "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 96, "num_experts_per_tok": 8,
    "num_hidden_layers": 92, "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000, "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False, "topk_group": 1, "torch_dtype": "bfloat16", "use_qk_norm": True,
    "vocab_size": 151552,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960,
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
PUBLISHED = {"deepseek-v3": DEEPSEEK, "moonlight-16b-a3b": MOONLIGHT, "glm-4.5": GLM, "qwen3-8b": QWEN3}


def read(tmp_path: Path, raw: dict[str, Any]) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return read_config(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED[name]) == PRESETS[name]


def yarn(tmp_path: Path, **rope: Any) -> YarnConfig:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **rope}
    found = read(tmp_path, QWEN3 | {"rope_scaling": scaling}).yarn
    assert found is not None
    return found


def test_the_attention_factor_of_yarn_is_derived_as_transformers_derives_it(tmp_path: Path) -> None:
    assert yarn(tmp_path) == YarnConfig(4.0, 64, attention_factor=0.1 * math.log(4) + 1)
    assert yarn(tmp_path, attention_factor=1.5, beta_fast=8).attention_factor == 1.5
    both = yarn(tmp_path, mscale=2.0, mscale_all_dim=0.5)
    assert both.latent_factor == 0.5
    assert both.attention_factor == pytest.approx((0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1))


@pytest.mark.parametrize("change", [{"attention_factor": 1.25}, {"latent_factor": 0.7}, {"beta_slow": 2.0}])
def test_a_stretched_context_is_written_for_both_versions_of_transformers(change: Any, tmp_path: Path) -> None:
    config = replace(PRESETS["deepseek-v3"], yarn=replace(YarnConfig(4.0, 64), **change))
    raw = config_json(config, "bfloat16")
    assert read(tmp_path, raw) == config
    del raw["rope_parameters"]
    assert read(tmp_path, raw) == config


REFUSED = {
    "scores of another kind": (DEEPSEEK, {"scoring_func": "softmax"}, "scoring_func is 'softmax', only 'sigmoid'"),
    "a dense layer too many": (MOONLIGHT, {"first_k_dense_replace": 28}, "first_k_dense_replace is 28, must be from 0"),
    "no count of dense layers": (MOONLIGHT, {"first_k_dense_replace": None}, "first_k_dense_replace is None"),
    "a part of a head": (QWEN3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but all of a head"),
    "long rope": (QWEN3, {"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
    "a rotary field of tomorrow": (QWEN3, {"rope_scaling": {"type": "yarn", "truncate": 0}}, "field 'truncate'"),
    "no factor": (QWEN3, {"rope_scaling": {"type": "yarn"}}, "factor of rope_type 'yarn' is None"),
    "no rank": (DEEPSEEK, {"kv_lora_rank": None}, "field 'kv_lora_rank' is missing"),
    "a rank below zero": (DEEPSEEK, {"q_lora_rank": -1}, "q_lora_rank is -1, must be a positive int"),
    "a switch that is none": (GLM, {"use_qk_norm": "yes"}, "use_qk_norm is 'yes', must be true or false"),
    "biases of latents": (DEEPSEEK, {"attention_bias": True}, "attention_bias is True, only False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(case: str, tmp_path: Path) -> None:
    raw, change, message = REFUSED[case]
    with pytest.raises(PefxError) as caught:
        read(tmp_path, raw | change)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3-8b", {"attention_bias": True}, "a qwen3 base has attention_bias False"),
        ("qwen3-8b", {"dense_layers": (0,)}, "dense layers of a qwen3 base are all 36"),
        ("qwen3-30b-a3b", {"router_scores": "sigmoid"}, "a qwen3_moe base has router_scores 'softmax'"),
        ("qwen3-30b-a3b", {"shared_experts": 1}, "has shared_experts 0"),
        ("qwen3-30b-a3b", {"rotary_fraction": 0.5}, "has rotary_fraction 1.0"),
        ("glm-4.5", {"router_bias": False}, "a glm4_moe base has router_bias True"),
        ("glm-4.5", {"dense_layers": (1,)}, "dense layers of a glm4_moe base are the first ones, not (1,)"),
        ("kimi-k2", {"query_key_norm": False}, "a kimi_k2 base has query_key_norm True"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(name: str, change: Any, message: str) -> None:
    with pytest.raises(PefxError) as caught:
        config_json(replace(PRESETS[name], **change), "bfloat16")
    assert message in str(caught.value)


def test_layers_behind_the_last_are_those_that_the_config_counts() -> None:
    assert extra_prefixes(DEEPSEEK, PRESETS["deepseek-v3"]) == ("model.layers.61.",)
    assert extra_prefixes(MOONLIGHT, PRESETS["moonlight-16b-a3b"]) == ()
    assert extra_prefixes(QWEN3 | {"num_nextn_predict_layers": 1}, PRESETS["qwen3-8b"]) == ()
