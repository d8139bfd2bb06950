"""Learning rate by step, evaluated once on the host: the device only ever reads one number per slot and step."""

import numpy as np
import optax

from pefx.config import OptimizerConfig
from pefx.errors import PefxError


def learning_rates(optimizer: OptimizerConfig, steps: int) -> np.ndarray:
    """float32[steps]: the rate of each update, linear warm-up to the peak, then cosine to `final_fraction` of it.

    The first update already moves (rate peak / warmup_steps); the last has the final rate.
    """
    if steps < 1:
        raise PefxError(f"steps is {steps}; a session needs at least one update")
    if not 0 <= optimizer.final_fraction <= 1:
        raise PefxError(f"optimizer.final_fraction is {optimizer.final_fraction}; it must lie in 0..1")
    warmup = min(optimizer.warmup_steps, steps - 1)
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=optimizer.learning_rate / (warmup + 1),
        peak_value=optimizer.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps - 1, warmup + 1),
        end_value=optimizer.learning_rate * optimizer.final_fraction,
    )
    return np.asarray([schedule(step) for step in range(steps)], np.float32)
