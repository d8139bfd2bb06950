"""Warm-up and cosine, as a table."""

import numpy as np
import pytest

from pefx.config import OptimizerConfig
from pefx.errors import PefxError
from pefx.training.schedule import learning_rates


def test_against_the_formula() -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
    rates = learning_rates(optimizer, 13)
    assert rates.dtype == np.float32
    assert rates.shape == (13,)
    # Linear from peak / (warmup + 1) to the peak at step 4, then half a cosine to a quarter of it at the last step.
    np.testing.assert_allclose(rates[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    cosine = 0.5 + 1.5 * (1 + np.cos(np.pi * np.arange(9) / 8)) / 2
    np.testing.assert_allclose(rates[4:], cosine, rtol=1e-6)


def test_every_update_moves_and_one_step_has_the_peak_rate() -> None:
    assert learning_rates(OptimizerConfig(learning_rate=0.5, warmup_steps=5), 1).tolist() == [0.5]
    assert np.all(learning_rates(OptimizerConfig(warmup_steps=50), 7) > 0)


def test_the_same_numbers_twice() -> None:
    optimizer = OptimizerConfig()
    assert learning_rates(optimizer, 40).tobytes() == learning_rates(optimizer, 40).tobytes()


def test_bad_input() -> None:
    with pytest.raises(PefxError, match="steps is 0"):
        learning_rates(OptimizerConfig(), 0)
    with pytest.raises(PefxError, match=r"final_fraction is 1\.5"):
        learning_rates(OptimizerConfig(final_fraction=1.5), 3)
