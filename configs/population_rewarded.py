"""One of many who are rewarded for one easy task, as cheaply as can be: what studies of small adapters vary.
Adapters are on attention and dense layers, where all methods have a place.
"""

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

config = TrainConfig(
    name="population_rewarded",
    output="runs/population_rewarded",
    base="assets/base_tasks",
    users=(UserConfig("one", task=TaskConfig("edits", options=(("edit", "ends"),))),),
    adapter=AdapterSpec(alpha=16.0, targets=SITES),
    optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=3),
    data=DataConfig(sequence_length=16, tokens_per_user=256, users_per_step=72),
    rollout=RolloutConfig(prompts=2, group=8, max_tokens=5, heldout=32, heldout_temperature=1.0),
    checkpoint=CheckpointConfig(every=10),
    steps=30,
    page_size=16,
)
