"""Corrections of the mismatch between the trainer and the sampler of a rollout: a table, and what applies a row. Numpy.

`rho = exp(old - sampler)` is a drawn token's probability by the trainer, before the batch's first update, over that by
the sampler. A row measures it, token by token or over the sequence, and holds the measure against two bounds. What lies
outside is cut to the bound or rejected: a token that is rejected counts nowhere, in no sum and in no denominator. All
that comes out is constant in the loss. A new correction is a row, and a function in `MEASURES` where it measures anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from pefx.errors import PefxError
from pefx.losses.rows import Old

# No weight is further from 1: beyond, it says nothing, and one that rounds to 0 would read as rejected.
LEAST, MOST = float(np.exp(-20.0)), float(np.exp(20.0))

# Of one sequence's tokens: rho; its product; its geometric mean; the mean of rho - ln(rho) - 1, which estimates the
# divergence of the trainer from the sampler.
Measure = Literal["token", "sequence", "geometric", "k3"]
# What a token weighs that is not rejected: 1, its own rho, or the measure.
Weight = Literal["one", "rho", "measure"]


@dataclass(frozen=True)
class Correction:
    """One row. A `measure` outside of [`low`, `high`] is cut to the bound where the row `cuts`, else rejected."""

    measure: Measure
    weight: Weight
    formula: str
    source: str
    cuts: bool = False
    low: float = 0.0
    high: float = np.inf


CORRECTIONS: dict[str, Correction] = {
    "none": Correction(measure="token", weight="one", formula="1", source="no correction"),
    "tis": Correction(
        measure="token",
        weight="measure",
        cuts=True,
        high=2.0,
        formula="min(rho, high)",
        source="Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    ),
    "seq_tis": Correction(
        measure="sequence",
        weight="measure",
        cuts=True,
        high=2.0,
        formula="min(prod(rho), high)",
        source="Liu et al. 2025, When Speed Kills Stability",
    ),
    "mis": Correction(
        measure="token",
        weight="measure",
        low=0.5,
        high=2.0,
        formula="rho if low <= rho <= high, else rejected",
        source="Liu et al. 2025, When Speed Kills Stability; below as far as above",
    ),
    "seq_mis": Correction(
        measure="sequence",
        weight="measure",
        low=0.5,
        high=2.0,
        formula="prod(rho) if low <= prod(rho) <= high, else all are rejected",
        source="Liu et al. 2025, When Speed Kills Stability; below as far as above",
    ),
    "icepop": Correction(
        measure="token",
        weight="measure",
        low=0.5,
        high=5.0,
        formula="rho if low <= rho <= high, else rejected",
        source="Ling Team 2025 (2510.18855), IcePop",
    ),
    "geo_rs": Correction(
        measure="geometric",
        weight="one",
        low=0.999,
        high=1.001,
        formula="1 if low <= prod(rho)^(1/T) <= high, else all are rejected",
        source="Liu et al. 2025, When Speed Kills Stability",
    ),
    "k3": Correction(
        measure="k3",
        weight="one",
        high=1e-2,
        formula="1 if mean(rho - ln(rho) - 1) <= high, else all are rejected",
        source="the estimator k3 of Schulman 2020, Approximating KL Divergence",
    ),
}

MEASURES: dict[Measure, Callable[[np.ndarray], np.ndarray | np.floating]] = {
    "token": np.exp,
    "sequence": lambda logs: np.exp(logs.sum()),
    "geometric": lambda logs: np.exp(logs.mean()),
    "k3": lambda logs: np.mean(np.expm1(logs) - logs),
}


def correction(name: str, old: Old, low: float | None = None, high: float | None = None) -> Correction:
    """The row `name` for a loss whose ratio is against `old`, with bounds other than its own where they are given.

    A loss against "proximal" has rho for a weight: so what a row leaves at 1 weighs rho, and rows that weigh rho
    themselves bound that weight. Raises PefxError for a name that is not in the table, bounds that leave nothing, and
    a row that weighs rho where the loss is not against the trainer (that weight would be there twice, or mean nothing).
    """
    if name not in CORRECTIONS:
        raise PefxError(f"there is no correction '{name}'; there are {', '.join(CORRECTIONS)}")
    row = CORRECTIONS[name]
    if name == "none" and (low is not None or high is not None):
        raise PefxError("the correction 'none' has no bounds; leave them out or name another correction")
    row = replace(row, low=row.low if low is None else low, high=row.high if high is None else high)
    if not (0 <= row.low <= row.high and row.high > 0):
        raise PefxError(f"the correction '{name}' has bounds {row.low:g} and {row.high:g}; 0 <= low <= high is wanted")
    if row.weight == "measure" and old not in ("trainer", "proximal"):
        others = ", ".join(other for other, found in CORRECTIONS.items() if found.weight == "one")
        raise PefxError(
            f"the correction '{name}' weighs tokens for a ratio against the trainer; this loss has '{old}': take "
            f"one of {others}"
        )
    return replace(row, weight="rho") if old == "proximal" and row.weight == "one" else row


def correct(
    row: Correction,
    old: Float32[np.ndarray, "n"],
    sampler: Float32[np.ndarray, "n"],
    sampled: Bool[np.ndarray, "n"],
) -> tuple[Float32[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Weights of one rollout's tokens, and which of those drawn are rejected.

    `old` and `sampler` are log-probabilities (nats), read where `sampled`. Weights are 0 exactly where a token was not
    drawn or is rejected. Raises PefxError where a log-probability that is read is no finite number.
    """
    logs = old[sampled].astype(np.float64) - sampler[sampled].astype(np.float64)
    if not np.isfinite(logs).all():
        at = np.flatnonzero(sampled)[~np.isfinite(logs)][0]
        raise PefxError(
            f"token {at} has log-probabilities {old[at]} (trainer) and {sampler[at]} (sampler); both must be finite"
        )
    weights, rejected = np.zeros(len(sampled), np.float32), np.zeros(len(sampled), np.bool_)
    if len(logs):
        with np.errstate(over="ignore"):  # what is too large to be a number is above every bound
            measure = np.broadcast_to(MEASURES[row.measure](logs), logs.shape)
            weight = _weight(row, measure, logs)
        kept = row.cuts | ((row.low <= measure) & (measure <= row.high))
        weights[sampled] = np.where(kept, np.clip(weight, LEAST, MOST), 0.0)
        rejected[sampled] = ~kept
    return weights, rejected


def _weight(
    row: Correction, measure: Float64[np.ndarray, "t"], logs: Float64[np.ndarray, "t"]
) -> Float64[np.ndarray, "t"]:
    """Weights of tokens that are not rejected."""
    if row.weight == "one":
        return np.ones_like(logs)
    if row.weight == "rho":
        return np.exp(logs)
    return np.clip(measure, row.low, row.high) if row.cuts else measure
