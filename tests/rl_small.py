"""What the tests of rollouts share: records with everything in them, and whether two are the same to the bit."""

from dataclasses import fields
from typing import Any

import numpy as np

from pefx.rl.records import Rollout


def rollout(**changes: Any) -> Rollout:
    """One of five tokens, two of them drawn."""
    given: dict[str, Any] = {
        "policy": "ann",
        "task": "sums",
        "group": 3,
        "sample": 1,
        "revision": 12,
        "seed": 2**32 - 1,
        "tokens": np.array([5, 6, 7, 8, 9], np.int32),
        "sampled": np.array([False, False, False, True, True]),
        "logprobs": np.array([0, 0, 0, -0.5, -1.5], np.float32),
        "routes": np.arange(20, dtype=np.uint16).reshape(5, 2, 2),
        "reward": 0.75,
        "parts": {"exact": 1.0, "length": -0.25},
        "finish_reason": "stop",
        "text": "12",
        "turns": 1,
        "transcript": ("5 + 7 =", "12"),
    }
    return Rollout(**given | changes)


def bits(value: Any) -> Any:
    """`value`, so that it equals another exactly where all bits do."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: bits(one) for name, one in value.items()}
    return np.float64(value).tobytes() if isinstance(value, float) else value


def same(one: Rollout, other: Rollout, but: tuple[str, ...] = ()) -> bool:
    names = [field.name for field in fields(Rollout) if field.name not in but]
    return all(bits(getattr(one, name)) == bits(getattr(other, name)) for name in names)
