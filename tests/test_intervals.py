"""Intervals that know how sure they are."""

import numpy as np
import pytest

from pefx.sweeping.intervals import interval


def test_an_interval_holds_the_mean_of_its_population_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 1.0, (200, 12))
    held = [found.low <= 0.3 <= found.high for found in map(interval, samples.tolist())]
    assert 0.85 < np.mean(held) < 0.98  # percentile intervals of twelve are a little narrow
    found = interval([0.2, 0.4, 0.3])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.3)
    assert found.above_zero
    assert not interval([-0.1, 0.3, 0.1]).above_zero
    assert interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert str(interval([0.25, 0.25])) == "0.250 [0.250, 0.250]"
    for wrong in ([1.0], [], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="at least two finite numbers"):
            interval(wrong)
