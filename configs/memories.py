"""One of many who learn to keep what they read in a memory: what the study of memories varies. It makes the files."""

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig, UserConfig

config = TrainConfig(
    name="memories",
    output="runs/memories",
    base="assets/base_tasks",
    users=(UserConfig("one", train="build/memories/train.jsonl", heldout="build/memories/selection.jsonl"),),
    adapter=AdapterSpec("delta_mem", rank=8, alpha=16.0, targets=("memory",)),
    optimizer=OptimizerConfig(warmup_steps=10),
    data=DataConfig(sequence_length=48, tokens_per_user=512, users_per_step=18, heldout_tokens=1024),
    checkpoint=CheckpointConfig(every=20),
    steps=120,
    page_size=16,
)
