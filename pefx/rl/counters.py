"""What an update says of a policy's rollouts: how far sampler and trainer are apart, what was left out, what was won.

Numpy only. The names are in a table in docs/rl_correction.md. Sums are float64; of what does not differ, exactly 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt16

from pefx.losses.rows import Loss
from pefx.rl.advantages import even
from pefx.serving.routes import MISSING


@dataclass(frozen=True, eq=False)
class Scored:
    """One rollout as an update saw it. Of its tokens: which were `sampled`; log-probabilities (nats) of the `sampler`,
    of the `trainer` as it is at this update, and of the `old` policy that ratios are against; `weights` after
    corrections (0: counts nowhere); `entropies` (nats) of what each was drawn from; which were drawn where routes are
    `missing`. Of tokens as input, the routes `recorded` and those the trainer took, `live` (65535: not known; None: not
    asked for). All but routes are read where `sampled`. `reward` is not-a-number where there is none.
    """

    sampled: Bool[np.ndarray, "n"]
    sampler: Float32[np.ndarray, "n"]
    trainer: Float32[np.ndarray, "n"]
    old: Float32[np.ndarray, "n"]
    weights: Float32[np.ndarray, "n"]
    entropies: Float32[np.ndarray, "n"]
    missing: Bool[np.ndarray, "n"]
    recorded: UInt16[np.ndarray, "n Lm k"] | None
    live: UInt16[np.ndarray, "n Lm k"] | None
    reward: float
    group: int
    truncated: bool


def counters(rollouts: Sequence[Scored], loss: Loss) -> dict[str, float]:
    """All counters of one policy's batch; `loss` is the row of its loss, with the numbers that it uses."""
    return _of_tokens(rollouts, loss) | {"out_of_route": _out_of_route(rollouts)} | _of_rollouts(rollouts)


def _of_tokens(rollouts: Sequence[Scored], loss: Loss) -> dict[str, float]:
    """Over all tokens that were drawn."""

    def drawn(read: Callable[[Scored], np.ndarray]) -> Float64[np.ndarray, "t"]:
        return np.concatenate([np.zeros(0), *(read(one)[one.sampled] for one in rollouts)], dtype=np.float64)

    behind = drawn(lambda one: one.sampler) - drawn(lambda one: one.trainer)
    kept, missing = drawn(lambda one: one.weights) != 0, drawn(lambda one: one.missing) != 0
    return {
        "kl_k1": _mean(behind),
        "kl_k3": _mean(np.expm1(-behind) + behind),
        "gap_mean": _mean(np.abs(behind)),
        "gap_max": float(np.abs(behind).max(initial=0.0)),
        "clipped": _mean(np.concatenate([np.zeros(0), *(_clipped(one, loss) for one in rollouts)])),
        "masked": _mean(~kept),
        "unrouted": _mean(missing),
        "fallback": _mean(missing & kept),
        "entropy": _mean(drawn(lambda one: one.entropies)),
    }


def _clipped(one: Scored, loss: Loss) -> Float64[np.ndarray, "_"]:
    """Of each token that counts, 1 where the ratio that its loss reads is beyond the clip, whatever the advantage."""
    kept = one.sampled & (one.weights != 0)
    if loss.surrogate not in ("clipped", "clipped_weight") or not kept.any():
        return np.zeros(np.count_nonzero(kept))
    drift = one.trainer[kept].astype(np.float64) - one.old[kept].astype(np.float64)
    ratio = np.exp(np.full_like(drift, drift.mean()) if loss.over == "sequence" else drift)
    return ((ratio < 1.0 - loss.clip_low) | (ratio > 1.0 + loss.clip_high)).astype(np.float64)


def _out_of_route(rollouts: Sequence[Scored]) -> float:
    """Of all choices of an expert, in tokens and layers that both know, the part that the record does not have."""
    known = out = 0
    for one in rollouts:
        if one.recorded is None or one.live is None:
            continue
        both = ((one.recorded != MISSING) & (one.live != MISSING)).all(axis=-1)
        recorded, live = one.recorded[both], one.live[both]
        known += live.size
        out += int(np.count_nonzero((live[:, :, None] != recorded[:, None, :]).all(axis=-1)))
    return out / known if known else 0.0


def _of_rollouts(rollouts: Sequence[Scored]) -> dict[str, float]:
    rewards = np.asarray([one.reward for one in rollouts], np.float64)
    groups = np.asarray([one.group for one in rollouts], np.int64)
    known = rewards[np.isfinite(rewards)]
    _, firsts = np.unique(groups, return_index=True)
    return {
        "length": _mean(np.asarray([np.count_nonzero(one.sampled) for one in rollouts])),
        "reward_mean": _mean(known),
        "reward_std": float(known.std()) if len(known) and np.ptp(known) else 0.0,
        "unrewarded": _mean(~np.isfinite(rewards)),
        "even_groups": _mean(even(rewards, groups)[firsts]),
        "truncated": _mean(np.asarray([one.truncated for one in rollouts])),
    }


def _mean(values: np.ndarray) -> float:
    """Of none, 0."""
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0
