"""Qwen3-235B-A22B, adapters on experts and attention, on 64 v6e chips: `pefx plan configs/plan_qwen3_235b.py`."""

from pefx.config import AdapterSpec, MeshConfig, PlanConfig

config = PlanConfig(
    name="plan_qwen3_235b",
    base="qwen3-235b-a22b",
    topology="v6e:8x8",
    mesh=MeshConfig(data=1, expert=16, model=4),
    adapter=AdapterSpec(rank=16, alpha=32.0, expert_form="shared_hidden"),
    tokens_per_user=256,
    sequences=8,
    step_tokens=256,
)
