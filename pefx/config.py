"""Frozen configuration dataclasses; standard library only.

An experiment is one short file in `configs/` that builds one `TrainConfig` or `ServeConfig` named `config`.
"""

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "bfloat16"]
# How the large matrices of the base are held: in the base's precision, or in 8 bits with a scale for each block.
Weights = Literal["plain", "int8", "fp8"]
ExpertForm = Literal["per_expert", "shared_hidden"]
Method = Literal["lora", "rslora"]
# What a router makes of its logits.
RouterScores = Literal["softmax", "sigmoid"]
# What a backward pass computes again instead of keeping it: nothing, or every layer from its input.
Remat = Literal["none", "full"]
# Which experts training takes: as routers say now, as the trainer's said of the answers (R2), or the sampler's (R3).
Replay = Literal["live", "trainer", "sampler"]


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
    """What an adapter is, apart from its numbers. `targets` are site names of `pefx.adapters.sites`; those that a base
    does not have are left out.
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


@dataclass(frozen=True)
class RolloutConfig:
    """What a policy draws: for each update `group` answers to each of `prompts` problems, of up to `max_tokens` tokens
    a turn. Answers for `updates` updates are drawn at once, and learned from one after another.

    On `heldout` problems that are never trained on, its answers at temperature 0 are what it is measured by.
    """

    prompts: int = 8
    group: int = 8
    max_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0
    updates: int = 1
    heldout: int = 64


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of rewarded answers, a row of `pefx.losses.rows` (None: its own numbers), and what goes with it.

    `kl` and `entropy` weigh the divergence from the base and the entropy. `correction`, a row of
    `pefx.rl.corrections` with bounds of its own where they are None, weighs tokens by how far the trainer is from the
    sampler. Tokens without recorded routes, where `replay` needs them, are routed live, or with `drop_unrouted` not
    learned from. `drop_even` leaves out prompts whose answers are all rewarded alike, and draws others, `redraw` times
    at most. Answers longer than the last `overlong` tokens of the room they have lose reward.
    """

    name: str = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    beta: float | None = None
    kl: float = 0.0
    entropy: float = 0.0
    correction: str = "none"
    correction_low: float | None = None
    correction_high: float | None = None
    replay: Replay = "live"
    drop_unrouted: bool = False
    drop_even: bool = False
    redraw: int = 3
    overlong: int = 0


@dataclass(frozen=True)
class SamplerConfig:
    """How answers are drawn while policies train: `sequences` at once, `step_tokens` tokens of prompts in a step.

    For studies of what goes wrong the sampler may have the base in other `weights`, or policies as they were `stale`
    drawings ago (after a restart, as they are: older ones are not kept on disk).
    """

    sequences: int = 64
    step_tokens: int = 256
    weights: Weights | None = None
    stale: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay to `final_fraction` of the peak rate; `clip` is the global gradient norm."""

    learning_rate: float = 5e-3
    warmup_steps: int = 5
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8


@dataclass(frozen=True)
class TaskConfig:
    """Problems that a policy is rewarded for: a task of `pefx.rl.tasks.builtin` by its `name`, or "jsonl".

    `level` makes problems harder, `seed` draws them, `options` are (name, value) pairs of the task. A wrong answer gets
    `partial` times how close it is (None: as the task has it). After `turns` completions a problem is over.
    With "jsonl" the prompts are lines of `path`; held out are those of `heldout_path`, or without one an eighth, by
    hash. They are rewarded by `reward`, "module:function".
    A reward that takes more than `timeout` seconds or allocates more than `memory_mb` MiB is an error: the
    answer leaves its group.
    """

    name: str
    level: int = 1
    seed: int = 0
    options: tuple[tuple[str, int | str], ...] = ()
    partial: float | None = None
    path: str | None = None
    heldout_path: str | None = None
    reward: str | None = None
    turns: int = 8
    timeout: float = 5.0
    memory_mb: int = 512


@dataclass(frozen=True)
class UserConfig:
    """One personal model to train: a policy name, what it learns from, and what differs from the run's defaults.

    It learns from JSONL files, or from the rewards of a `task`.
    """

    name: str
    train: str | None = None
    heldout: str | None = None
    task: TaskConfig | None = None
    rollout: RolloutConfig | None = None
    policy_loss: PolicyLossConfig | None = None
    adapter: AdapterSpec | None = None
    optimizer: OptimizerConfig | None = None
    seed: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """`sequence_length` bounds one example in tokens; `tokens_per_user` (whole pages) is a user's share of a step."""

    sequence_length: int = 256
    tokens_per_user: int = 256
    users_per_step: int = 8
    seed: int = 0
    heldout_tokens: int = 4096


@dataclass(frozen=True)
class CheckpointConfig:
    """Sessions are saved every `every` steps (0: only at the end), the newest `keep` stay."""

    every: int = 50
    keep: int = 2


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


@dataclass(frozen=True)
class TrainConfig:
    """`train.py`: many adapters over one frozen base (`users`), or the base itself (`pretrain` set)."""

    name: str
    output: str
    base: str | None = None
    users: tuple[UserConfig, ...] = ()
    catalog: str | None = None
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pretrain: "PretrainConfig | None" = None
    steps: int = 40
    accumulate: int = 1
    evaluate_every: int = 0
    page_size: int = 32
    precision: Precision = "float32"
    base_weights: Weights = "plain"
    remat: Remat = "none"
    seed: int = 0


@dataclass(frozen=True)
class PretrainConfig:
    """Training of the base itself from random weights: its shape, tokenizer, text, and where it is written."""

    model: ModelConfig
    tokenizer: str
    train: str
    heldout: str
    export: str
    batch_tokens: int = 2048
    stored_precision: Precision = "bfloat16"


@dataclass(frozen=True)
class PlanConfig:
    """What `pefx plan` compiles for TPUs that are not there: a base by the name of its preset, or a folder.

    Each shard of rows has `slots` adapters; trains `users` of them in a step, `tokens_per_user` tokens each; and serves
    `sequences` of up to `context` tokens, of whose prompts a step takes in `step_tokens`. `topology` is a kind of TPU
    and a shape, as in `v5p:4x4x8`.
    """

    name: str
    base: str
    topology: str
    mesh: MeshConfig
    adapter: AdapterSpec = field(default_factory=lambda: AdapterSpec(rank=16, alpha=32.0))
    slots: int = 1
    users: int = 1
    tokens_per_user: int = 1024
    sequences: int = 8
    step_tokens: int = 512
    context: int = 4096
    page_size: int = 64
    precision: Precision = "bfloat16"
    base_weights: Weights = "plain"
    remat: Remat = "full"


@dataclass(frozen=True)
class HttpConfig:
    """A server: where, for whom, and within which bounds. Times are seconds.

    `keys` is a file that `pefx keys` writes; without one everybody on this machine may do everything, and nobody else
    anything. `queue` answers may be in flight. `tracked` policies keep the revision that they resolve to; every `poll`
    the catalog is asked for newer ones. One in `check_every` answers is computed again, as a prompt, and compared in
    bits (0: none). With `warm` the server compiles its steps before it takes requests.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: str | None = None
    queue: int = 1024
    timeout: float = 600.0
    drain: float = 30.0
    poll: float = 5.0
    catalog_timeout: float = 5.0
    tracked: int = 10_000
    body_bytes: int = 4 << 20
    buffer: int = 4096
    check_every: int = 100
    warm: bool = True


@dataclass(frozen=True)
class ServeConfig:
    """`serve.py`: inference over mixed adapters, of a file or by HTTP. `catalog=None` serves the base alone.

    `slots` adapters are resident at once, `sequences` run at once, a step takes in `step_tokens` tokens of prompts,
    `pages` of `page_size` tokens hold keys and values (0: enough for `sequences` full contexts).
    The bank has room for adapters up to `max_rank` on any of `targets`, their experts in `expert_form`. Beside it
    `host_cache_mb` MiB of host memory hold adapters that were read, or are read ahead of their requests.
    With `prefix_cache` pages stay when their request is over, for others of the same adapter that begin alike.
    """

    name: str
    base: str
    catalog: str | None = None
    slots: int = 16
    host_cache_mb: int = 1024
    sequences: int = 32
    step_tokens: int = 256
    pages: int = 0
    page_size: int = 32
    prefix_cache: bool = True
    max_rank: int = 16
    targets: tuple[str, ...] = AdapterSpec.targets
    expert_form: ExpertForm = "per_expert"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    precision: Precision = "float32"
    base_weights: Weights = "plain"
    seed: int = 0
    http: HttpConfig = field(default_factory=HttpConfig)
