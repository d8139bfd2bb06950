"""A second base, for rewards: a small Qwen3-MoE that reads bytes and can do the built-in tasks half of the time.

First `python -m pefx.rl.tasks.text --out build/tasks --levels 1 --count 400000`, then
`python train.py configs/base_tasks.py`.
"""

from pefx.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, TrainConfig

config = TrainConfig(
    name="base-tasks",
    output="runs/base_tasks",
    pretrain=PretrainConfig(
        model=ModelConfig(
            vocab_size=264,
            hidden=128,
            layers=4,
            heads=4,
            kv_heads=2,
            head_size=32,
            dense_hidden=384,
            expert_hidden=96,
            experts=8,
            experts_per_token=2,
            context=256,
        ),
        tokenizer="assets/base_tasks/tokenizer.json",
        train="build/tasks/train.jsonl",
        heldout="build/tasks/heldout.jsonl",
        export="assets/base_tasks",
        batch_tokens=4096,
        about="The text is problems of pefx's built-in tasks at level 1, half of them with a right answer, half with a "
        "wrong one, and a third as many more behind a context that holds the right one. The model answers such "
        "problems, and nothing else.",
    ),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=100, weight_decay=0.05, final_fraction=0.02),
    data=DataConfig(sequence_length=256, heldout_tokens=32_768),
    checkpoint=CheckpointConfig(every=500, keep=2),
    evaluate_every=500,
    steps=2400,
)
