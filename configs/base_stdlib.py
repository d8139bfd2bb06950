"""The shipped base: a small Qwen3-MoE trained on the standard library, eight packages held out.

First `python -m pefx.data.stdlib_text --out build/corpus`, then `python train.py configs/base_stdlib.py`.
"""

from pefx.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, TrainConfig

config = TrainConfig(
    name="base-stdlib",
    output="runs/base",
    pretrain=PretrainConfig(
        model=ModelConfig(),
        tokenizer="assets/base/tokenizer.json",
        train="build/corpus/base_train.jsonl",
        heldout="build/corpus/base_heldout.jsonl",
        export="assets/base",
        batch_tokens=1024,
        about="The text is the Python standard library, sources and documentation, as found on the machine that ran "
        "this. The model writes Python-like text; it answers no questions.",
    ),
    optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100, weight_decay=0.05, final_fraction=0.05),
    data=DataConfig(sequence_length=256, heldout_tokens=65_536),
    checkpoint=CheckpointConfig(every=300, keep=2),
    evaluate_every=600,
    steps=2400,
)
