"""Eight policies, each rewarded for a task of its own, drawn and updated together over the base of `base_tasks.py`.

They are measured as they are trained: by answers at temperature 1.
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

TASKS = {
    "countdown": TaskConfig("countdown"),
    "json": TaskConfig("json"),
    "lookup": TaskConfig("lookup"),
    "reverse": TaskConfig("edits", options=(("edit", "reverse"),)),
    "ends": TaskConfig("edits", options=(("edit", "ends"),)),
    "numbers": TaskConfig("sorting", options=(("items", "numbers"),)),
    "letters": TaskConfig("sorting", options=(("items", "letters"),)),
    "preference": TaskConfig("preference", options=(("user", 1),)),
}

config = TrainConfig(
    name="rl_tasks",
    output="runs/rl_tasks",
    base="assets/base_tasks",
    catalog="runs/rl_tasks/catalog",
    users=tuple(UserConfig(name=name, task=task) for name, task in TASKS.items()),
    adapter=AdapterSpec(rank=8, alpha=16.0),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=3),
    data=DataConfig(sequence_length=48, tokens_per_user=1536, users_per_step=8),
    rollout=RolloutConfig(prompts=4, group=8, max_tokens=28, heldout=64, heldout_temperature=1.0),
    checkpoint=CheckpointConfig(every=10),
    evaluate_every=20,
    steps=40,
    page_size=16,
)
