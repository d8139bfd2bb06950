"""A kernel at one real shape, to be compiled for TPUs that are not there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """`function(*arguments)` is traced with `jax.ShapeDtypeStruct` leaves. `kernels` are the `pallas_call` names in it,
    each run once; there are none where XLA's own operations are looked at.
    """

    kernel: str
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kernels: tuple[str, ...]
