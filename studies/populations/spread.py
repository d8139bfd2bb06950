"""How far seeds lie apart, and how sure that is."""

from collections.abc import Sequence

import numpy as np

from pefx.sweeping.intervals import DRAWS, Interval


def spread(values: Sequence[float], seed: int = 0) -> Interval:
    """The standard deviation over seeds, and its 95 % bootstrap interval (percentiles over draws of seeds)."""
    numbers = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).choice(numbers, size=(DRAWS, len(numbers))).std(axis=1, ddof=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(numbers.std(ddof=1)), float(low), float(high))


def wider(values: Sequence[float], others: Sequence[float], seed: int = 0) -> Interval:
    """By how many doublings the standard deviation over seeds is larger than that of others, seeds drawn together."""
    both = np.asarray([values, others], np.float64)
    drawn = np.random.default_rng(seed).choice(both, size=(DRAWS, both.shape[1]), axis=1)
    apart = np.diff(np.log2(np.maximum(drawn.std(axis=-1, ddof=1), 1e-9)), axis=0)[0]
    low, high = np.percentile(-apart, (2.5, 97.5))
    first, second = np.log2(both.std(axis=-1, ddof=1))
    return Interval(float(first - second), float(low), float(high))


def best_seed(selection: Sequence[float], report: Sequence[float], more: bool) -> float:
    """The report of the seed that is best on the selection part."""
    return report[int(np.argmax(selection) if more else np.argmin(selection))]
