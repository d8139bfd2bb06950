"""Shapes of published bases, by name: their `config.json` in the words of ModelConfig. Standard library only."""

from typing import Any

from pefx.config import ModelConfig, YarnConfig

_QWEN3: dict[str, Any] = {
    "vocab_size": 151_936,
    "head_size": 128,
    "rope_theta": 1e6,
    "norm_epsilon": 1e-6,
    "context": 40_960,
    "precision": "bfloat16",
}
_QWEN3_DENSE: dict[str, Any] = _QWEN3 | {
    "family": "qwen3",
    "kv_heads": 8,
    "experts": 0,
    "experts_per_token": 0,
    "expert_hidden": 0,
}
_QWEN3_SPARSE: dict[str, Any] = _QWEN3 | {
    "family": "qwen3_moe",
    "kv_heads": 4,
    "experts": 128,
    "experts_per_token": 8,
    "dense_layers": (),
    "tied_embedding": False,
}
_SIGMOID: dict[str, Any] = {
    "router_scores": "sigmoid",
    "router_bias": True,
    "tied_embedding": False,
    "precision": "bfloat16",
}
_LATENT: dict[str, Any] = _SIGMOID | {
    "head_size": 0,
    "kv_rank": 512,
    "nope_head_size": 128,
    "rope_head_size": 64,
    "value_head_size": 128,
    "rotary_neighbours": True,
}
_GLM_5: dict[str, Any] = _LATENT | {"nope_head_size": 192, "value_head_size": 256}
_DEEPSEEK: dict[str, Any] = _LATENT | {
    "hidden": 7168,
    "layers": 61,
    "dense_hidden": 18_432,
    "expert_hidden": 2048,
    "experts_per_token": 8,
    "shared_experts": 1,
    "query_rank": 1536,
    "norm_epsilon": 1e-6,
}

PRESETS: dict[str, ModelConfig] = {
    "qwen3-0.6b": ModelConfig(
        **_QWEN3_DENSE, hidden=1024, layers=28, heads=16, dense_hidden=3072, dense_layers=tuple(range(28))
    ),
    "qwen3-4b": ModelConfig(
        **_QWEN3_DENSE, hidden=2560, layers=36, heads=32, dense_hidden=9728, dense_layers=tuple(range(36))
    ),
    "qwen3-8b": ModelConfig(
        **_QWEN3_DENSE,
        hidden=4096,
        layers=36,
        heads=32,
        dense_hidden=12_288,
        dense_layers=tuple(range(36)),
        tied_embedding=False,
    ),
    "qwen3-30b-a3b": ModelConfig(
        **_QWEN3_SPARSE, hidden=2048, layers=48, heads=32, dense_hidden=6144, expert_hidden=768
    ),
    "qwen3-235b-a22b": ModelConfig(
        **_QWEN3_SPARSE, hidden=4096, layers=94, heads=64, dense_hidden=12_288, expert_hidden=1536
    ),
    "moonlight-16b-a3b": ModelConfig(
        **_LATENT,
        family="deepseek_v3",
        vocab_size=163_840,
        hidden=2048,
        layers=27,
        heads=16,
        kv_heads=16,
        dense_hidden=11_264,
        expert_hidden=1408,
        experts=64,
        experts_per_token=6,
        shared_experts=2,
        dense_layers=(0,),
        gate_scale=2.446,
        rope_theta=50_000.0,
        norm_epsilon=1e-5,
        context=8192,
    ),
    "deepseek-v3": ModelConfig(
        **_DEEPSEEK,
        family="deepseek_v3",
        vocab_size=129_280,
        heads=128,
        kv_heads=128,
        experts=256,
        expert_groups=8,
        groups_per_token=4,
        dense_layers=(0, 1, 2),
        gate_scale=2.5,
        rope_theta=10_000.0,
        context=163_840,
        yarn=YarnConfig(factor=40.0, original_context=4096, latent_factor=1.0),
    ),
    "kimi-k2": ModelConfig(
        **_DEEPSEEK,
        family="kimi_k2",
        vocab_size=163_840,
        heads=64,
        kv_heads=64,
        experts=384,
        dense_layers=(0,),
        gate_scale=2.827,
        rope_theta=50_000.0,
        context=131_072,
        yarn=YarnConfig(factor=32.0, original_context=4096, beta_fast=1.0, latent_factor=1.0),
    ),
    "glm-4.5": ModelConfig(
        **_SIGMOID,
        family="glm4_moe",
        vocab_size=151_552,
        hidden=5120,
        layers=92,
        heads=96,
        kv_heads=8,
        head_size=128,
        dense_hidden=12_288,
        expert_hidden=1536,
        experts=160,
        experts_per_token=8,
        shared_experts=1,
        dense_layers=(0, 1, 2),
        gate_scale=2.5,
        attention_bias=True,
        rotary_fraction=0.5,
        rope_theta=1e6,
        norm_epsilon=1e-5,
        context=131_072,
    ),
    "glm-5": ModelConfig(
        **_GLM_5,
        family="glm_moe_dsa",
        vocab_size=154_880,
        hidden=6144,
        layers=78,
        heads=64,
        kv_heads=64,
        dense_hidden=12_288,
        expert_hidden=2048,
        experts=256,
        experts_per_token=8,
        shared_experts=1,
        dense_layers=(0, 1, 2),
        gate_scale=2.5,
        query_rank=2048,
        index_keys=2048,
        index_heads=32,
        index_head_size=128,
        rope_theta=1e6,
        norm_epsilon=1e-5,
        context=202_752,
    ),
}
