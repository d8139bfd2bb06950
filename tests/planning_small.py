"""A small base and a plan of it, compiled in seconds for four v5e devices."""

from importlib.util import find_spec

import pytest

from pefx.config import AdapterSpec, MeshConfig, ModelConfig, PlanConfig

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = ModelConfig(
    vocab_size=512, hidden=256, layers=2, heads=4, kv_heads=4, head_size=128, dense_hidden=256, expert_hidden=128,
    experts=8, experts_per_token=2, dense_layers=(), context=512,
)  # fmt: skip
CONFIG = PlanConfig(
    name="small",
    base="small",
    topology="v5e:2x2",
    mesh=MeshConfig(1, 2, 2),
    adapter=AdapterSpec(rank=8, targets=("q_proj", "experts.down_proj")),
    tokens_per_user=128,
    context=256,
    sequences=4,
    step_tokens=64,
)
