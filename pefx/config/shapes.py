"""What a base is, what an adapter is, and how they lie on devices; standard library only."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]
# How the large matrices of the base are held: in the base's precision, or in 8 bits with a scale for each block.
Weights = Literal["plain", "int8", "fp8"]
ExpertForm = Literal["per_expert", "shared_hidden"]
Method = Literal[
    "lora", "rslora", "lora_plus", "dora", "vera", "lora_xs", "tiny_lora", "ia3", "lora_ga", "delta_mem", "delta_state"
]
# How the factors of LoRA start: `pefx.adapters.methods.starts`.
Init = Literal["default", "minor", "mica", "olora_tail", "olora", "pissa", "milora"]
# What a router makes of its logits.
RouterScores = Literal["softmax", "sigmoid"]
# What a backward pass computes again instead of keeping it: nothing, or every layer from its input.
Remat = Literal["none", "full"]


@dataclass(frozen=True)
class YarnConfig:
    """Rotary frequencies stretched to a longer context (YaRN, Peng et al. 2023, section 3).

    Frequencies that turn fewer than `beta_slow` times in `original_context` tokens are divided by `factor`, those that
    turn more than `beta_fast` times stay, between them goes a ramp. Cosine and sine are multiplied by
    `attention_factor`; softmax scores of latent attention by the square of `0.1 latent_factor ln(factor) + 1`.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    latent_factor: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one base. Families are values of these fields, never copies of the model.

    Sizes are counts; `rope_theta` is the rotary base, `context` the longest sequence in tokens.
    `dense_layers` lists (0-based, global) layers whose feed-forward is dense; all others are mixtures of experts.

    Attention: `rotary_fraction` of a head is rotated, in pairs of neighbours where `rotary_neighbours`, else of halves.
    `kv_rank` above 0 means multi-head latent attention (DeepSeek-V2, section 2.1): keys and values are read from
    a latent of `kv_rank` and a rotated part of `rope_head_size`, which all heads share; queries from one of
    `query_rank` (0: straight from the hidden state). Its heads have `nope_head_size` + `rope_head_size` for scores and
    `value_head_size` for values; `kv_heads` and `head_size` then mean nothing.
    Sparse attention (DeepSeek-V3.2, section 2.1) looks at `index_keys` keys only (0: at all), which an index of
    `index_heads` heads of `index_head_size` chooses; it reads the latent of queries.

    Routing (DeepSeek-V3, section 2.1.2): `router_bias` is added to scores when experts are chosen, not in gates; of
    `expert_groups`, only the best `groups_per_token` are chosen from; gates are multiplied by `gate_scale`.
    `shared_experts` experts read every token: one dense layer of that many times `expert_hidden`.
    """

    family: str = "qwen3_moe"
    vocab_size: int = 4096
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 32
    dense_hidden: int = 512
    expert_hidden: int = 64
    experts: int = 16
    experts_per_token: int = 4
    normalize_gates: bool = True
    dense_layers: tuple[int, ...] = (0,)
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    tied_embedding: bool = True
    context: int = 1024
    precision: Precision = "float32"
    weights: Weights = "plain"
    query_key_norm: bool = True
    attention_bias: bool = False
    rotary_fraction: float = 1.0
    rotary_neighbours: bool = False
    yarn: YarnConfig | None = None
    query_rank: int = 0
    kv_rank: int = 0
    nope_head_size: int = 0
    rope_head_size: int = 0
    value_head_size: int = 0
    index_keys: int = 0
    index_heads: int = 0
    index_head_size: int = 0
    router_scores: RouterScores = "softmax"
    router_bias: bool = False
    expert_groups: int = 1
    groups_per_token: int = 1
    gate_scale: float = 1.0
    shared_experts: int = 0


BLOCK = 128  # the longest side of a block of 8-bit weights


def block_of(size: int) -> int:
    """The side of a block of 8-bit weights along an axis of `size`: its largest divisor up to `BLOCK`."""
    return next(side for side in range(min(size, BLOCK), 0, -1) if size % side == 0)


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter is, apart from its numbers: a `method` of `pefx.adapters.methods`, and its sizes. `targets` are
    site names of `pefx.adapters.sites`; those that a base does not have are left out.

    Of "lora" and its kin, `init` is how the factors start; the factor that `frozen` names stays as it starts. `units`
    are the numbers that "tiny_lora" learns for a matrix, or where it is `tied` for all layers of a site, or for "all"
    layers of all sites.

    Of "delta_mem", whose one target is "memory", each layer of a sequence has `states` states of rank x rank, written
    for every token, or for every message by its mean. A "delta_state" is what these held when a sequence was over, of a
    sequence that was served by the revision `over`, as `policy@number`.
    """

    method: Method = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj",
        "gate_proj", "up_proj", "down_proj", "experts.gate_proj", "experts.up_proj", "experts.down_proj",
        "shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj",
    )  # fmt: skip
    expert_form: ExpertForm = "per_expert"
    init: Init = "default"
    frozen: Literal["none", "a", "b"] = "none"
    units: int = 2
    tied: bool | Literal["all"] = False
    states: int = 1
    writes: Literal["tokens", "messages"] = "tokens"
    over: str = ""


@dataclass(frozen=True)
class MeshConfig:
    """Devices of a run, a product of three axes.

    `data` shards hold their own adapters and sequences (0: as many as the devices, on CPU cores, leave room for).
    Experts are divided over `expert`, whose shards are shards of rows too; heads and widths over `model`.
    """

    data: int = 0
    expert: int = 1
    model: int = 1

    @property
    def rows(self) -> int:
        """Shards of rows, each with slots and pages of its own."""
        return self.data * self.expert
