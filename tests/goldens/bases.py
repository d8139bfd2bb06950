"""Shapes of the random bases whose logits are golden, by directory: config fields as transformers takes them.

Sizes differ from each other and from powers of two, so that nothing fits by chance. Each is small, and each branch that
a family's config can take is taken by one of them.
"""

from typing import Any, NamedTuple


class Base(NamedTuple):
    """`family` is the model_type; `precision` and `shard` (the size of a file) are those on disk."""

    family: str
    fields: dict[str, Any]
    seed: int
    precision: str = "float32"
    shard: str = "1GB"


# Queries are wider than the hidden state.
ODD = {
    "vocab_size": 211,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [1],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
}
# The other branches: gates not normalised, tied embedding, as many key heads as heads, alternate dense layers, no
# head_dim written, bfloat16 on disk, in several files.
PLAIN = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 44,
    "moe_intermediate_size": 20,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "decoder_sparse_step": 2,
    "norm_topk_prob": False,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 96,
}
QWEN3 = {
    "vocab_size": 89,
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 52,
    "tie_word_embeddings": False,
    "rope_theta": 5000.0,
    "max_position_embeddings": 128,
}
# Stretched so far that the sequences are longer than what it was trained on; and as many key heads as heads.
QWEN3_YARN = {
    **QWEN3,
    "hidden_size": 44,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 14,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 200.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4,
        "beta_slow": 1,
    },
}
GLM = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 44,
    "moe_intermediate_size": 20,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "first_k_dense_replace": 2,
    "attention_bias": True,
    "use_qk_norm": True,
    "tie_word_embeddings": False,
    "rope_theta": 8000.0,
    "max_position_embeddings": 128,
}
# No norms of queries and keys, no biases, one group, gates as they are, a quarter of a head rotated.
GLM_AIR = {
    **GLM,
    "vocab_size": 83,
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "moe_intermediate_size": 16,
    "n_routed_experts": 7,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
    "first_k_dense_replace": 1,
    "attention_bias": False,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.25,
}
DEEPSEEK = {
    "vocab_size": 103,
    "hidden_size": 34,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 22,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "intermediate_size": 46,
    "moe_intermediate_size": 20,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 8,
        "beta_slow": 1,
        "mscale": 1.3,
        "mscale_all_dim": 0.7,
    },
}
# Queries straight from the hidden state, nothing stretched, one group, another epsilon (not that of the latents).
MOONLIGHT = {
    **DEEPSEEK,
    "q_lora_rank": None,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.446,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
# Sequences are longer than the keys that a query looks at; the index has heads of its own size.
GLM_SPARSE = {
    **{name: value for name, value in DEEPSEEK.items() if name != "rope_parameters"},
    "n_group": 1,
    "topk_group": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
    "index_topk": 9,
    "index_n_heads": 11,
    "index_head_dim": 10,
}
# The last query looks at all keys but one; leading layers dense, many small experts. Fewer heads of the index
# leave many keys at a score of exactly zero: which of those are chosen is up to whoever sorts.
GLM_SPARSE_WIDE = {
    **GLM_SPARSE,
    "vocab_size": 87,
    "hidden_size": 46,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "q_lora_rank": 30,
    "kv_lora_rank": 26,
    "qk_nope_head_dim": 14,
    "v_head_dim": 12,
    "moe_intermediate_size": 14,
    "n_routed_experts": 11,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 2,
    "norm_topk_prob": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "index_topk": 69,
    "index_n_heads": 9,
    "index_head_dim": 22,
}

BASES = {
    "odd": Base("qwen3_moe", ODD, 1),
    "plain": Base("qwen3_moe", PLAIN, 2, "bfloat16", "40KB"),
    "qwen3": Base("qwen3", QWEN3, 3),
    "qwen3_yarn": Base("qwen3", QWEN3_YARN, 4, "bfloat16"),
    "glm": Base("glm4_moe", GLM, 5, "bfloat16", "60KB"),
    "glm_air": Base("glm4_moe", GLM_AIR, 6),
    "deepseek": Base("deepseek_v3", DEEPSEEK, 7, "bfloat16"),
    "glm_sparse": Base("glm_moe_dsa", GLM_SPARSE, 9, "bfloat16"),
    "glm_sparse_wide": Base("glm_moe_dsa", GLM_SPARSE_WIDE, 11),
    "moonlight": Base("deepseek_v3", MOONLIGHT, 8, "bfloat16"),
}
