"""From rewards to advantages, one for each rollout, by the words of `Advantage` in `pefx.losses.rows`. Numpy only.

The rollouts of one prompt are a group. One without a reward (not-a-number or infinite: it failed, or its reward did) is
not of its group: no mean, deviation or pair counts it, and it has no advantage. Inside everything is float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from pefx.errors import PefxError
from pefx.losses.rows import Advantage

EPSILON = 1e-6  # beside a standard deviation


@dataclass(frozen=True, eq=False)
class Graded:
    """Of each rollout its advantage, and whether it is `taken` into the update; 0 where it is not. `partners` are, of
    those in pairs, the index of the other one (-1: none).
    """

    advantages: Float64[np.ndarray, "n"]
    taken: Bool[np.ndarray, "n"]
    partners: Int32[np.ndarray, "n"]


def grade(rewards: Float64[np.ndarray, "n"], groups: Int[np.ndarray, "n"], kind: Advantage) -> Graded:
    """The advantages of one policy's batch, `groups[i]` the group that rollout i is of.

    Deviations are those of a population (of n, not n - 1). Of "preference", the first of the best and the first of the
    worst of a group are a pair; the others, and all of a group whose rewards are equal, are not taken.
    """
    taken = np.isfinite(rewards)
    advantages, partners = np.zeros(len(rewards)), np.full(len(rewards), -1, np.int32)
    for members in _members(groups, taken):
        advantages[members] = _WITHIN[kind](rewards[members])
    if kind == "batch_normalised" and taken.any():
        advantages[taken] = _normalised(advantages[taken])
    if kind == "preference":
        taken = advantages != 0
        for pair in _members(groups, taken):
            partners[pair] = pair[::-1]
    return Graded(advantages, taken, partners)


def even(rewards: Float64[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which rollouts are of a group in which all rewards are equal, or that has none: it teaches nothing.

    Dynamic sampling leaves them out: Yu et al. 2025 (2503.14476), eq. 11.
    """
    uneven = [groups[members[0]] for members in _members(groups, np.isfinite(rewards)) if np.ptp(rewards[members]) != 0]
    return ~np.isin(groups, np.asarray(uneven, groups.dtype))


def overlong(length: int, most: int, buffer: int) -> float:
    """What is added to the reward of a completion of `length` tokens, of `most` that are allowed: 0 while the last
    `buffer` of them are left, then linearly down to -1.

    Yu et al. 2025 (2503.14476), eq. 13. Raises PefxError unless 0 <= buffer <= most.
    """
    if not 0 <= buffer <= most:
        raise PefxError(f"the buffer of overlong completions is {buffer} tokens; it must be from 0 to {most}, the most")
    over = length - (most - buffer)
    return -1.0 if length > most else -max(over, 0) / max(buffer, 1)


def _members(groups: Int[np.ndarray, "n"], taken: Bool[np.ndarray, "n"]) -> Iterator[Int[np.ndarray, "_"]]:
    """Indices of those taken of each group that has any."""
    for group in np.unique(groups[taken]):
        yield np.flatnonzero(taken & (groups == group))


def _centred(rewards: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """Less their mean; exactly 0 where they are equal."""
    above = rewards - rewards.min()
    return above - above.mean()


def _normalised(rewards: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    centred = _centred(rewards)
    return centred / (np.sqrt(np.mean(centred * centred)) + EPSILON)


def _preferred(rewards: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """1 for the best, -1 for the worst; 0 for all where they are equal."""
    sides = np.zeros(len(rewards))
    if np.ptp(rewards) != 0:
        sides[rewards.argmax()], sides[rewards.argmin()] = 1.0, -1.0
    return sides


_WITHIN: dict[Advantage, Callable[[np.ndarray], np.ndarray]] = {
    "none": np.zeros_like,
    "group_centred": _centred,
    "group_normalised": _normalised,
    "batch_normalised": _centred,
    "preference": _preferred,
    "context": _normalised,
}
