"""The demo: eight users, each a standard-library package that the base never saw, trained in one mixed batch."""

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig, UserConfig

USERS = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")

config = TrainConfig(
    name="train_users",
    output="runs/demo",
    base="assets/base",
    catalog="runs/demo/catalog",
    users=tuple(
        UserConfig(
            name=name,
            train=f"build/demo/users/{name}/train.jsonl",
            heldout=f"build/demo/users/{name}/heldout.jsonl",
        )
        for name in USERS
    ),
    adapter=AdapterSpec(rank=8, alpha=16.0),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    data=DataConfig(sequence_length=256, tokens_per_user=256, users_per_step=8, heldout_tokens=1024),
    checkpoint=CheckpointConfig(every=25),
    steps=50,
)
