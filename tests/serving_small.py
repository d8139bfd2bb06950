"""A tiny random base with adapters that matter, on disk as serving finds them."""

import zlib
from pathlib import Path

import numpy as np
from flax import nnx

from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, ModelConfig, ServeConfig
from pefx.huggingface import save_base
from pefx.loading import load_base
from pefx.model import Base
from pefx.store.catalog import Catalog

TOKENIZER = Path(__file__).parent.parent / "assets" / "base" / "tokenizer.json"
MODEL = ModelConfig(
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=16,
    dense_hidden=48,
    expert_hidden=16,
    experts=4,
    experts_per_token=2,
    context=96,
)
RANKS = {"alice": 2, "bob": 4, "carol": 8, "dave": 1}


def random_adapter(spec: AdapterSpec, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """An adapter whose delta is not zero."""
    rng = np.random.default_rng(seed)
    adapter = init_adapter(MODEL, spec, seed)
    return {
        site: {"a": pair["a"], "b": rng.normal(size=pair["b"].shape).astype(np.float32) * 0.3}
        for site, pair in adapter.items()
    }


def make_base(directory: Path) -> str:
    """Write the base; returns its digest."""
    save_base(Base(MODEL, nnx.Rngs(0)), directory, TOKENIZER)
    return load_base(directory)[1]


def commit(catalog: Path, base: str, policy: str, seed: int) -> None:
    """One more revision of `policy`."""
    spec = AdapterSpec(rank=RANKS.get(policy, 2))
    Catalog.open(catalog, create=True).commit(
        policy,
        adapter=random_adapter(spec, zlib.crc32(policy.encode()) + seed),
        spec=spec,
        base=base,
        step=1,
        seeds={"run": seed},
        config={},
        data_fingerprint="",
        metrics={},
    )


def make_config(directory: Path) -> ServeConfig:
    """A base and a catalog of `RANKS` in `directory`, and a config that serves them; too few slots for all at once."""
    digest = make_base(directory / "base")
    for policy in RANKS:
        commit(directory / "catalog", digest, policy, seed=0)
    return ServeConfig(
        name="small",
        base=str(directory / "base"),
        catalog=str(directory / "catalog"),
        slots=3,
        sequences=8,
        step_tokens=32,
        page_size=32,
        max_rank=8,
    )
