"""Qwen3-30B-A3B on sixteen v5e chips: `pefx plan configs/plan_qwen3_30b.py`."""

from pefx.config import AdapterSpec, MeshConfig, PlanConfig

config = PlanConfig(
    name="plan_qwen3_30b",
    base="qwen3-30b-a3b",
    topology="v5e:4x4",
    mesh=MeshConfig(data=1, expert=4, model=4),
    adapter=AdapterSpec(rank=16, alpha=32.0, expert_form="shared_hidden"),
    tokens_per_user=256,
    sequences=4,
    step_tokens=128,
)
