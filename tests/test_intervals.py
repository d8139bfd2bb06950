"""Bootstrap intervals of means over seeds."""

import numpy as np
import pytest

from pefx.sweeping.intervals import interval


def test_the_mean_is_within_and_the_spread_follows_the_numbers():
    numbers = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = interval(list(numbers))
    assert found.mean == pytest.approx(numbers.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert found.low < found.mean < found.high
    assert found.above_zero
    assert not interval([-1.0, 1.0]).above_zero
    assert str(interval([0.5, 0.5])) == "0.500 [0.500, 0.500]"


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_what_has_no_interval_is_refused(values):
    with pytest.raises(ValueError, match="at least two finite numbers"):
        interval(values)
