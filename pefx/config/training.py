"""Runs of `train.py`; standard library only."""

from dataclasses import dataclass, field

from pefx.config.rewards import PolicyLossConfig, RolloutConfig, SamplerConfig, TaskConfig
from pefx.config.shapes import AdapterSpec, MeshConfig, ModelConfig, Precision, Remat, Weights


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
class HalvingConfig:
    """Successive halving, which a `SweepConfig` asks for: a run's users are cells of `seeds` users each, in order.

    After each of `rungs` (updates of a user) the `keep` of cells, rounded up, that are best on what is held out go on
    with the schedule of their full length, the others stop.
    """

    rungs: tuple[int, ...]
    keep: float
    seeds: int


@dataclass(frozen=True)
class PretrainConfig:
    """Training of the base itself from random weights: its shape, tokenizer, text, and where it is written.

    `about` says on its card what the text is, and what the model does.
    """

    model: ModelConfig
    tokenizer: str
    train: str
    heldout: str
    export: str
    batch_tokens: int = 2048
    stored_precision: Precision = "bfloat16"
    about: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """`train.py`: many adapters over one frozen base (`users`), or the base itself (`pretrain` set).

    Where there are fewer `slots` (0: one for each user) than users, those who are furthest behind are resident for
    `slice_steps` steps at a time; the others wait, all that they are, in the catalog.
    """

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
    pretrain: PretrainConfig | None = None
    halving: HalvingConfig | None = None
    steps: int = 40
    slots: int = 0
    slice_steps: int = 20
    accumulate: int = 1
    evaluate_every: int = 0
    page_size: int = 32
    precision: Precision = "float32"
    base_weights: Weights = "plain"
    remat: Remat = "none"
    seed: int = 0
