"""Families of bases as data: how each is written as a Hugging Face directory. A new family is one more value here."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Written(NamedTuple):
    """A field of `config.json`. `default` stands for one that is missing or null; None: it must be there.

    `renamed` is another name that some version of transformers writes.
    """

    name: str
    default: Any = None
    renamed: str = ""


@dataclass(frozen=True)
class Family:
    """`fields` maps fields of ModelConfig to those of `config.json`; `implied` are those that the family settles.

    `fixed` are fields of `config.json` whose other values are refused. `dense` says how it lists layers with a dense
    feed-forward: all of them, by stride and exceptions, or the leading ones. `rotary_fraction` is the family's own
    where `config.json` names none; None: all of a head is rotated. `extra_layers` is the field of `config.json` that
    counts layers behind the last, which predict more than one token and are no part of the base. `uniform` are fields
    that list something of each layer, where all must be the same. `tensors` maps the parameters of a segment to tensors
    of a layer; `{e}` runs over experts, whose matrices are transposed.
    """

    architecture: str
    fields: dict[str, Written]
    dense: Literal["all", "listed", "leading"]
    tensors: dict[str, str]
    implied: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    rotary_fraction: float | None = None
    extra_layers: str = ""
    uniform: dict[str, Any] = field(default_factory=dict)


SHARED_FIELDS = {
    "vocab_size": Written("vocab_size"),
    "hidden": Written("hidden_size"),
    "layers": Written("num_hidden_layers"),
    "heads": Written("num_attention_heads"),
    "kv_heads": Written("num_key_value_heads"),
    "dense_hidden": Written("intermediate_size"),
    "norm_epsilon": Written("rms_norm_eps"),
    "tied_embedding": Written("tie_word_embeddings"),
    "context": Written("max_position_embeddings"),
}
# Where it is missing, the hidden size is divided evenly over the heads.
HEADS = {"head_size": Written("head_dim", 0)}
EXPERTS = {
    "expert_hidden": Written("moe_intermediate_size"),
    "experts_per_token": Written("num_experts_per_tok"),
    "normalize_gates": Written("norm_topk_prob"),
}
# Routing as in DeepSeek-V3.
GROUPS = {
    "experts": Written("n_routed_experts", renamed="num_local_experts"),
    "shared_experts": Written("n_shared_experts"),
    "expert_groups": Written("n_group"),
    "groups_per_token": Written("topk_group"),
    "gate_scale": Written("routed_scaling_factor"),
}
EXTRA_LAYERS = "num_nextn_predict_layers"
SIGMOID = {"router_scores": "sigmoid", "router_bias": True}
LATENT = {
    "query_rank": Written("q_lora_rank", 0),
    "kv_rank": Written("kv_lora_rank"),
    "nope_head_size": Written("qk_nope_head_dim"),
    "rope_head_size": Written("qk_rope_head_dim"),
    "value_head_size": Written("v_head_dim"),
    "rotary_neighbours": Written("rope_interleave", True),
}

TOP_TENSORS = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "unembed": "lm_head.weight"}
# Whatever the precision of a base, these are float32.
FLOAT32_TENSORS = ("mlp.gate.e_score_correction_bias",)


def _weights(ours: str, theirs: str, *names: str) -> dict[str, str]:
    return {ours + name: f"{theirs}{name}.weight" for name in names}


FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
DENSE_TENSORS = {
    "block.input_norm": "input_layernorm.weight",
    "block.post_norm": "post_attention_layernorm.weight",
    **_weights("block.feed.", "mlp.", *FEED_FORWARD),
}
SPARSE_TENSORS = {
    "block.feed.weight": "mlp.gate.weight",
    **_weights("experts.", "mlp.experts.{e}.", *FEED_FORWARD),
}
SHARED_TENSORS = {
    "block.feed.bias": "mlp.gate.e_score_correction_bias",
    **_weights("block.shared_experts.", "mlp.shared_experts.", *FEED_FORWARD),
}
GROUPED_TENSORS = _weights("block.attention.", "self_attn.", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
BIAS_TENSORS = {f"block.attention.{x}_bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
LATENT_TENSORS = {
    **_weights("block.attention.", "self_attn.", "q_proj", "q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"),
    "block.attention.q_a_norm": "self_attn.q_a_layernorm.weight",
    "block.attention.kv_a_proj": "self_attn.kv_a_proj_with_mqa.weight",
    "block.attention.kv_a_norm": "self_attn.kv_a_layernorm.weight",
}

INDEX = {
    "index_keys": Written("index_topk"),
    "index_heads": Written("index_n_heads"),
    "index_head_size": Written("index_head_dim"),
}
INDEX_TENSORS = {
    **_weights("block.attention.index.", "self_attn.indexer.", "k_norm", "weights_proj"),
    "block.attention.index.q_proj": "self_attn.indexer.wq_b.weight",
    "block.attention.index.k_proj": "self_attn.indexer.wk.weight",
    "block.attention.index.k_norm_bias": "self_attn.indexer.k_norm.bias",
}

QWEN_FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
DEEPSEEK = Family(
    architecture="DeepseekV3ForCausalLM",
    fields=SHARED_FIELDS | EXPERTS | GROUPS | LATENT,
    dense="leading",
    tensors=DENSE_TENSORS | SPARSE_TENSORS | SHARED_TENSORS | LATENT_TENSORS,
    implied=SIGMOID | {"head_size": 0},
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    extra_layers=EXTRA_LAYERS,
)
FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        fields=SHARED_FIELDS | HEADS,
        dense="all",
        tensors=DENSE_TENSORS | GROUPED_TENSORS,
        implied={"experts": 0, "experts_per_token": 0, "expert_hidden": 0},
        fixed=QWEN_FIXED,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        fields=SHARED_FIELDS | HEADS | EXPERTS | {"experts": Written("num_experts", renamed="num_local_experts")},
        dense="listed",
        tensors=DENSE_TENSORS | SPARSE_TENSORS | GROUPED_TENSORS,
        fixed=QWEN_FIXED,
    ),
    "glm4_moe": Family(
        architecture="Glm4MoeForCausalLM",
        fields=SHARED_FIELDS
        | HEADS
        | EXPERTS
        | GROUPS
        | {"query_key_norm": Written("use_qk_norm", False), "attention_bias": Written("attention_bias", False)},
        dense="leading",
        tensors=DENSE_TENSORS | SPARSE_TENSORS | SHARED_TENSORS | GROUPED_TENSORS | BIAS_TENSORS,
        implied=SIGMOID,
        fixed={"hidden_act": "silu"},
        rotary_fraction=0.5,
        extra_layers=EXTRA_LAYERS,
    ),
    "glm_moe_dsa": Family(
        architecture="GlmMoeDsaForCausalLM",
        fields=SHARED_FIELDS | EXPERTS | GROUPS | LATENT | INDEX | {"query_rank": Written("q_lora_rank")},
        dense="leading",
        tensors=DEEPSEEK.tensors | INDEX_TENSORS,
        implied=DEEPSEEK.implied,
        # Layers that take over the keys another one chose are not known here.
        fixed=DEEPSEEK.fixed | {"index_topk_freq": 1, "index_topk_pattern": None},
        uniform={"indexer_types": "full"},
        extra_layers=EXTRA_LAYERS,
    ),
    "deepseek_v3": DEEPSEEK,
    "kimi_k2": DEEPSEEK,
}
