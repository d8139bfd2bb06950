"""Which form of a kernel runs: the best one there is for the platform, or the one that was named.

    with implementation("pallas_tpu"):
        compiled = step.lower(...).compile()

The choice is part of jax's cache key, so one function traced under two choices is two programs.
"""

from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu

# In order of preference. The interpreter runs the TPU's kernels anywhere, slowly, and looks for races.
PALLAS, INTERPRETED, PORTABLE = "pallas_tpu", "pallas_interpret", "xla"
# What a TPU would choose, named where there is none.
BEST_ON_TPU = "best_on_tpu"

_named = jax.make_user_context(default_value=None)


def implementation(name: str | None) -> AbstractContextManager[Any]:
    """Inside it every kernel takes the form of this name, or raises ValueError where it has none for its shapes.

    None: the TPU's kernels on a TPU where they take the shapes, the portable form elsewhere; `best_on_tpu`: as if this
    were a TPU.
    """
    if name not in (None, PALLAS, INTERPRETED, PORTABLE, BEST_ON_TPU):
        raise ValueError(
            f"implementation is {name!r}; it must be one of {PALLAS}, {INTERPRETED}, {PORTABLE}, {BEST_ON_TPU} or None"
        )
    return _named(name)


def on_tpu() -> bool:
    """Whether this is a TPU, or what is made here is for one."""
    named = _named.value
    return named in (PALLAS, BEST_ON_TPU) or (named is None and jax.default_backend() == "tpu")


def use_pallas(kernel: str, problem: str | None) -> bool:
    """Whether the Pallas form runs here. `problem` says why it cannot take these shapes, None where it can.

    Raises ValueError where it was named and cannot.
    """
    named = _named.value
    if named in (None, BEST_ON_TPU):
        return on_tpu() and problem is None
    if named == PORTABLE:
        return False
    if problem is not None:
        raise ValueError(f"{kernel} has no {named} form here: {problem}; name {PORTABLE} or None")
    return True


def interpreter() -> Any:
    """`interpret` of a `pallas_call`: False compiles it; named `pallas_interpret`, it is run on CPU and checked."""
    return pltpu.InterpretParams(detect_races=True) if _named.value == INTERPRETED else False
