"""Which rate is best, between those that were tried."""

from collections.abc import Sequence

import numpy as np


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The lowest point of the parabola, over the logarithm of evenly spaced rates, through the lowest loss and its two
    neighbours; at an end, that rate.
    """
    at = int(np.argmin(losses))
    if at in (0, len(rates) - 1):
        return rates[at]
    left, here, right = losses[at - 1 : at + 2]
    bend = left - 2 * here + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(rates[at] * (rates[at + 1] / rates[at]) ** shift)


def at_rate(rates: Sequence[float], losses: Sequence[float], rate: float) -> float:
    """The loss at a rate, on a line over its logarithm between those that were tried; beyond them, that of the end."""
    return float(np.interp(np.log(rate), np.log(rates), losses))


def slope(ranks: Sequence[int], best: Sequence[float]) -> float:
    """By how many doublings the best rate moves when the rank doubles, by least squares."""
    return float(np.polyfit(np.log2(ranks), np.log2(best), 1)[0])
