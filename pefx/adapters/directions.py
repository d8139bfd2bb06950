"""Singular directions of a base's matrices: the first ones carry most of what a matrix does, the last ones least."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from pefx.errors import PefxError

# The first or the last of the singular directions; or the first ones of Q and R.
Part = Literal["first", "last", "orthogonal"]


class Directions(NamedTuple):
    """`W = sum_i strengths_i outward_i inward_i^T`: outward `[..., R, out]`, strengths `[..., R]`, inward
    `[..., R, in]`. Float32. Singular ones: largest first, the largest entry of each inward direction positive, so that
    signs mean nothing. Of W = Q R outward are columns of Q, inward rows of R, strengths ones.
    """

    outward: np.ndarray
    strengths: np.ndarray
    inward: np.ndarray


def directions(site: str, matrices: Callable[[], np.ndarray], rank: int, part: Part = "first") -> Directions:
    """`rank` directions of each of `matrices` `[..., out, in]`, the same whatever the rank. Raises as `checked`."""
    held = checked(site, matrices, rank)
    if part == "orthogonal":
        q, r = np.linalg.qr(held)
        columns = np.swapaxes(q, -1, -2)[..., :rank, :]
        return Directions(columns, np.ones(columns.shape[:-1], np.float32), r[..., :rank, :])
    u, s, v = np.linalg.svd(held, full_matrices=False)
    most = min(held.shape[-2:])
    here = slice(most - rank, most) if part == "last" else slice(0, rank)
    outward, inward = np.swapaxes(u, -1, -2)[..., here, :], v[..., here, :]
    peak = np.take_along_axis(inward, np.abs(inward).argmax(axis=-1)[..., None], axis=-1)
    sign = np.where(peak < 0, np.float32(-1), np.float32(1))
    return Directions(outward * sign, s[..., here], inward * sign)


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
