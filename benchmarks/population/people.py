"""A population over the shipped base: users with a rank-1 adapter each, on the attention sites, in bfloat16.

The numbers of an adapter are a window into a pool of noise as large as a trained adapter's numbers are; windows of two
users differ, and making one costs nothing, so that what is timed is the catalog.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

from pefx.adapters.methods.table import leaf_shapes
from pefx.config import AdapterSpec
from pefx.families.config_json import read_config
from pefx.store.commits import Draft

BASE = Path(__file__).resolve().parents[2] / "assets" / "base"
SPEC = AdapterSpec(rank=1, alpha=2.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
POOL = 1 << 22  # numbers
STRIDE = 7  # between the windows of two users; the pool is gone through some times, at another sign each
CONFIG = {"name": "population", "steps": 40, "accumulate": 1, "optimizer": {"learning_rate": 5e-3, "clip": 1.0}}
SEEDS = {"run": 0, "data": 0}
METRICS = {"heldout_nats_per_token": {"before": 3.5, "after": 3.1}}


def name_of(user: int) -> str:
    """The policy of a user."""
    return f"user-{user:07d}"


@cache
def pool() -> np.ndarray:
    """Noise, bfloat16."""
    return np.random.default_rng(0).normal(0, 0.02, POOL).astype(ml_dtypes.bfloat16)


@cache
def places() -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Site and factor, shape, and where in an adapter's numbers each factor begins and ends."""
    found, at = [], 0
    for site, pair in leaf_shapes(read_config(BASE), SPEC).items():
        for factor, shape in pair.items():
            found.append((site, factor, shape, at, at + math.prod(shape)))
            at = found[-1][-1]
    return found


def tensor_bytes() -> int:
    """Bytes of one adapter's numbers."""
    return 2 * places()[-1][-1]


def adapter_of(user: int) -> dict[str, dict[str, np.ndarray]]:
    """The adapter of a user: `{site: {"a": [L, 1, in], "b": [L, 1, out]}}`, views into the pool."""
    at = user * STRIDE % (POOL - tensor_bytes())
    numbers = pool()[at : at + tensor_bytes()]
    found: dict[str, dict[str, np.ndarray]] = {}
    for site, factor, shape, begin, end in places():
        found.setdefault(site, {})[factor] = numbers[begin:end].reshape(shape)
    return found


def drafts(begin: int, end: int, base: str) -> Iterator[Draft]:
    """The first revision of every user from `begin` to `end`."""
    for user in range(begin, end):
        yield Draft(
            policy=name_of(user),
            adapter=adapter_of(user),
            spec=SPEC,
            base=base,
            step=40,
            seeds=SEEDS,
            config=CONFIG,
            data_fingerprint=f"sha256:{user:064x}",
            metrics=METRICS,
        )
