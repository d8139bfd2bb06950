"""One of many who learn right answers of a task: what studies of small adapters vary, a population at a time.
They make the files. Adapters are on attention and dense layers, where all methods have a place.
"""

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig, UserConfig

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

config = TrainConfig(
    name="population_told",
    output="runs/population_told",
    base="assets/base_tasks",
    users=(UserConfig("one", train="build/told/train.jsonl", heldout="build/told/selection.jsonl"),),
    adapter=AdapterSpec(alpha=16.0, targets=SITES),
    optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=3),
    data=DataConfig(sequence_length=32, tokens_per_user=128, users_per_step=42, heldout_tokens=2048),
    checkpoint=CheckpointConfig(every=10),
    steps=30,
    page_size=16,
)
