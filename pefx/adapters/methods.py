"""Adapter methods as data: how a method scales its product, and how its factors start."""

import numpy as np

from pefx.adapters.sites import factor_shapes
from pefx.config import AdapterSpec, ModelConfig

Adapter = dict[str, dict[str, np.ndarray]]  # {site: {"a": [L, (E,) R, in], "b": [L, (E,) R, out]}}

SCALES = {
    "lora": lambda alpha, rank: alpha / rank,  # Hu et al. 2021
    "rslora": lambda alpha, rank: alpha / rank**0.5,  # Kalajdzievski 2023
}


def scale(spec: AdapterSpec) -> float:
    """The factor on an adapter's product."""
    return SCALES[spec.method](spec.alpha, spec.rank)


def init_adapter(config: ModelConfig, spec: AdapterSpec, seed: int) -> Adapter:
    """A fresh adapter: A uniform in +-1/sqrt(in) (as PEFT's Kaiming start), B zero, so that the delta is zero. Float32.

    Each factor draws from its own stream of `seed`, so that an adapter does not depend on which others exist.
    """
    adapter: Adapter = {}
    for site, shapes in sorted(factor_shapes(config, spec).items()):
        rng = np.random.default_rng([seed, *site.encode()])
        bound = shapes["a"][-1] ** -0.5
        a = rng.uniform(-bound, bound, shapes["a"]).astype(np.float32)
        adapter[site] = {"a": a, "b": np.zeros(shapes["b"], np.float32)}
    return adapter
