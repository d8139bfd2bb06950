"""Does muA carry a rate from rank to rank: eight rates, moved by it, at four ranks; the worse half stops, twice."""

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    Scaling,
    SweepConfig,
    TrainConfig,
    UserConfig,
)

TEXT = "build/demo/users/logging"

config = SweepConfig(
    name="sweep_halved",
    run=TrainConfig(
        name="sweep_halved",
        output="runs/sweep_halved",
        base="assets/base",
        users=(UserConfig("logging", f"{TEXT}/train.jsonl", f"{TEXT}/heldout.jsonl"),),
        optimizer=OptimizerConfig(warmup_steps=3),
        data=DataConfig(sequence_length=64, tokens_per_user=64, users_per_step=32, heldout_tokens=1024),
        checkpoint=CheckpointConfig(every=10),
        steps=40,
    ),
    adapters=(AdapterSpec(rank=8, alpha=16.0),),
    ranks=(1, 4, 16, 64),
    scaling=Scaling(alpha="by_root", rate="mu_a"),
    learning_rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1),
    rungs=(10, 20),
    keep=0.5,
)
