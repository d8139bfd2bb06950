"""Frozen configuration dataclasses; standard library only.

An experiment is one short file in `configs/` that builds one `TrainConfig` or `ServeConfig` named `config`.
"""

from pefx.config.rewards import (
    PolicyLossConfig,
    Replay,
    RolloutConfig,
    SamplerConfig,
    TaskConfig,
)
from pefx.config.serving import (
    HttpConfig,
    PlanConfig,
    ServeConfig,
)
from pefx.config.shapes import (
    BLOCK,
    AdapterSpec,
    ExpertForm,
    MeshConfig,
    Method,
    ModelConfig,
    Precision,
    Remat,
    RouterScores,
    Weights,
    YarnConfig,
    block_of,
)
from pefx.config.sweeps import AlphaRule, RateRule, Record, Scaling, SweepConfig
from pefx.config.training import (
    CheckpointConfig,
    DataConfig,
    HalvingConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
    UserConfig,
)

__all__ = [
    "BLOCK",
    "AdapterSpec",
    "AlphaRule",
    "CheckpointConfig",
    "DataConfig",
    "ExpertForm",
    "HalvingConfig",
    "HttpConfig",
    "MeshConfig",
    "Method",
    "ModelConfig",
    "OptimizerConfig",
    "PlanConfig",
    "PolicyLossConfig",
    "Precision",
    "PretrainConfig",
    "RateRule",
    "Record",
    "Remat",
    "Replay",
    "RolloutConfig",
    "RouterScores",
    "SamplerConfig",
    "Scaling",
    "ServeConfig",
    "SweepConfig",
    "TaskConfig",
    "TrainConfig",
    "UserConfig",
    "Weights",
    "YarnConfig",
    "block_of",
]
