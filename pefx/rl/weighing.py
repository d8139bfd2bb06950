"""From corrected weights to what the device is given: weights in which the mean is folded, and a denominator. Numpy.

What a policy's gradient is, summed over its tokens by weight, is divided by the denominator. Both are made here, so
their bits do not depend on where in a batch a rollout lies.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt16

from pefx.losses.rows import Aggregation
from pefx.serving.routes import MISSING

# A drawn token whose routes were not recorded: "mask" rejects it, "fallback" keeps it, routed as the trainer does.
MissingRoutes = Literal["mask", "fallback"]


def routes_missing(
    routes: UInt16[np.ndarray, "n Lm k"] | None, sampled: Bool[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Which drawn tokens were drawn where routes are missing, in any layer; all of them where there is no record.

    `routes` are of tokens as input, so token i was drawn along those of token i - 1. Those of the last are never read.
    """
    if routes is None:
        return sampled.copy()
    missing = np.zeros(len(sampled), np.bool_)
    missing[1:] = (routes[:-1] == MISSING).any(axis=(1, 2))
    return missing & sampled


def routed(
    weights: Float32[np.ndarray, "n"], missing: Bool[np.ndarray, "n"], rule: MissingRoutes
) -> Float32[np.ndarray, "n"]:
    """The weights of one rollout after `rule` for the tokens whose routes are `missing`."""
    return np.where(missing, np.float32(0), weights) if rule == "mask" else weights


def weigh(
    weights: Sequence[Float32[np.ndarray, "_"]],
    aggregation: Aggregation,
    longest: int,
    partners: Int32[np.ndarray, "s"] | None = None,
) -> tuple[list[Float32[np.ndarray, "_"]], float]:
    """What tokens of one policy's batch weigh in its sums, and what these are divided by.

    `weights` are those of each rollout after corrections: 0 where a token was not drawn or is rejected, and only there.
    Tokens of weight 0 and rollouts without any other count nowhere. `longest` is the most tokens of a completion,
    `partners` are rollouts in pairs (-1: alone): where one has nothing left, the other has nothing to be compared with
    and goes too. The denominator is 0 where nothing is left: the policy has nothing to learn from.
    """
    kept = np.asarray([np.count_nonzero(own) for own in weights], np.int64)
    if partners is not None:
        kept = np.where((partners >= 0) & (kept[partners] == 0), 0, kept)
    own_share = aggregation == "sequence_mean"
    shares = [(1.0 / count if own_share else 1.0) if count else 0.0 for count in kept.tolist()]
    scaled = [(own.astype(np.float64) * share).astype(np.float32) for own, share in zip(weights, shares, strict=True)]
    if aggregation == "token_mean":
        return scaled, float(kept.sum())
    return scaled, float(np.count_nonzero(kept) * (1 if own_share else longest))
