"""Kimi K2 (1T parameters), adapters on experts and attention, on 128 v5p chips: `pefx plan configs/plan_kimi_k2.py`."""

from pefx.config import AdapterSpec, MeshConfig, PlanConfig

config = PlanConfig(
    name="plan_kimi_k2",
    base="kimi-k2",
    topology="v5p:4x4x8",
    mesh=MeshConfig(data=1, expert=32, model=4),
    adapter=AdapterSpec(
        rank=16,
        alpha=32.0,
        targets=(
            *("q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj"),
            *("experts.gate_proj", "experts.up_proj", "experts.down_proj"),
        ),
        expert_form="shared_hidden",
    ),
    tokens_per_user=256,
    sequences=8,
    step_tokens=256,
)
