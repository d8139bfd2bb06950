"""Singular directions of a base's matrices: the first ones carry most of what a matrix does, the last ones least."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pefx.errors import PefxError


class Directions(NamedTuple):
    """`W = sum_i strengths_i outward_i inward_i^T`: outward `[..., R, out]`, strengths `[..., R]`, largest first,
    inward `[..., R, in]`. Float32. Of each inward direction the largest entry is positive, so that signs mean nothing.
    """

    outward: np.ndarray
    strengths: np.ndarray
    inward: np.ndarray


def directions(site: str, matrices: Callable[[], np.ndarray], rank: int, last: bool = False) -> Directions:
    """The first `rank` directions of each of `matrices` `[..., out, in]`, or the `last` ones. Raises as `checked`."""
    held = checked(site, matrices, rank)
    most = min(held.shape[-2:])
    u, s, v = np.linalg.svd(held, full_matrices=False)
    part = slice(most - rank, most) if last else slice(0, rank)
    outward, inward = np.swapaxes(u, -1, -2)[..., part, :], v[..., part, :]
    peak = np.take_along_axis(inward, np.abs(inward).argmax(axis=-1)[..., None], axis=-1)
    sign = np.where(peak < 0, np.float32(-1), np.float32(1))
    return Directions(outward * sign, s[..., part], inward * sign)


def checked(site: str, matrices: Callable[[], np.ndarray], rank: int) -> np.ndarray:
    """The matrices, float32. Raises PefxError, naming the site, where they are smaller than `rank` (kind "wrong_rank"),
    or have numbers that are none.
    """
    held = np.asarray(matrices(), np.float32)
    most = min(held.shape[-2:])
    if rank > most:
        told = f"rank {rank} is above the size of '{site}', {held.shape[-2]} x {held.shape[-1]}: at most {most}"
        raise PefxError(told, "wrong_rank")
    bad = held.size - int(np.isfinite(held).sum())
    if bad:
        raise PefxError(f"'{site}' of the base has {bad} NaN or infinite weights: it has no directions", "not_finite")
    return held
