"""Bases, adapters and PEFT directories for the tests of exchange."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pefx.adapters.methods.table import Adapter, leaf_shapes
from pefx.adapters.sites import MATRICES, SITES, has_site
from pefx.config import AdapterSpec, ModelConfig

# Sizes differ from each other, so that nothing fits by chance.
SPARSE = ModelConfig(
    vocab_size=31, hidden=10, layers=3, experts_per_token=2, dense_layers=(), dense_hidden=12, expert_hidden=7,
    experts=5, tied_embedding=False, heads=3, kv_heads=1, head_size=8,
)  # fmt: skip
LATENT = replace(
    SPARSE, family="deepseek_v3", shared_experts=1, dense_layers=(0,), head_size=0, kv_heads=3, query_rank=9,
    kv_rank=11, nope_head_size=4, rope_head_size=2, value_head_size=6,
)  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "qwen3": replace(SPARSE, family="qwen3", experts=0, expert_hidden=0, dense_layers=(0, 1, 2)),
    "qwen3_moe": replace(SPARSE, dense_layers=(1,)),
    "all sparse": SPARSE,
    "glm4_moe": replace(SPARSE, family="glm4_moe", dense_layers=(0,), shared_experts=2),
    "deepseek_v3": LATENT,
    "square": replace(SPARSE, expert_hidden=5, dense_layers=(0,)),
    "kimi_k2": replace(LATENT, family="kimi_k2", query_rank=0),
}


def sites_of(config: ModelConfig) -> list[str]:
    return [site for site in MATRICES if has_site(config, site)]


def random_factors(
    config: ModelConfig, spec: AdapterSpec, seed: int = 0, dtype: np.dtype | type = np.float32
) -> Adapter:
    """Every factor full of numbers of its own, B too."""
    rng = np.random.default_rng(seed)
    shapes = leaf_shapes(config, spec)
    return {site: {k: rng.normal(size=x).astype(dtype) for k, x in pair.items()} for site, pair in shapes.items()}


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelConfig, AdapterSpec, int]:
    """A base, a spec over some of its sites as `read_peft` gives it, and a seed."""
    config = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    own = sites_of(config)
    targets = draw(st.sets(st.sampled_from(own), min_size=1))
    experts = any(SITES[site].kind == "experts" for site in targets)
    spec = AdapterSpec(
        method=draw(st.sampled_from(("lora", "rslora"))),
        rank=draw(st.integers(1, 9)),
        alpha=float(draw(st.one_of(st.integers(1, 64), st.floats(0.01, 100.0)))),
        targets=tuple(site for site in own if site in targets),
        expert_form=draw(st.sampled_from(("per_expert", "shared_hidden"))) if experts else "per_expert",
    )
    return config, spec, draw(st.integers(0, 2**32 - 1))


def delta(adapter: Adapter, scale: float, config: ModelConfig) -> dict[str, np.ndarray]:
    """What an adapter adds to each matrix, in float64: `[L, (E,) in, out]` by site."""
    found = {}
    for site, pair in adapter.items():
        a, b = (np.asarray(pair[k], np.float64) for k in "ab")
        if SITES[site].kind == "experts":
            a, b = (x if x.ndim == 4 else np.repeat(x[:, None], config.experts, 1) for x in (a, b))
        found[site] = scale * np.einsum("...ri,...ro->...io", a, b)
    return found


def put(directory: Path, fields: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> Path:
    """A PEFT directory; names of tensors without their beginning."""
    directory.mkdir(parents=True, exist_ok=True)
    full = {f"base_model.model.{name}": np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(full, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
    return directory


def numbers(shape: Sequence[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(np.float32)
