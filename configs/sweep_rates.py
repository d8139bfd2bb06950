"""Which rate suits which rank: 12 cells, twice each, learn to sort numbers from rewards, as one population."""

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RolloutConfig,
    Scaling,
    SweepConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)

config = SweepConfig(
    name="sweep_rates",
    run=TrainConfig(
        name="sweep_rates",
        output="runs/sweep_rates",
        base="assets/base_tasks",
        users=(UserConfig("numbers", task=TaskConfig("sorting", options=(("items", "numbers"),))),),
        optimizer=OptimizerConfig(warmup_steps=3),
        data=DataConfig(sequence_length=32, tokens_per_user=1024, users_per_step=24),
        rollout=RolloutConfig(prompts=4, group=8, max_tokens=14, heldout=64, heldout_temperature=1.0),
        checkpoint=CheckpointConfig(every=10),
        steps=20,
        page_size=16,
    ),
    adapters=(AdapterSpec(rank=8, alpha=16.0),),
    ranks=(1, 4, 8, 16),
    scaling=Scaling(alpha="by_rank", rate="unchanged"),
    learning_rates=(5e-4, 2e-3, 8e-3),
    seeds=2,
)
