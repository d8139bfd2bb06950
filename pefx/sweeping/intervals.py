"""How sure a mean over seeds is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000


class Interval(NamedTuple):
    """A mean, and the 95 % bootstrap interval (percentiles of means of seeds drawn with replacement)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def above_zero(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of one number per seed. Raises ValueError for fewer than two, or for what is not finite."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        raise ValueError(f"an interval needs at least two finite numbers, got {list(values)}")
    drawn = np.random.default_rng(seed).choice(numbers, size=(DRAWS, len(numbers))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(numbers.mean()), float(low), float(high))
