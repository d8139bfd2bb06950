"""`jit` with the compiler options under which equal computations give equal bits (law 2, law 3).

XLA:CPU may otherwise hand large reductions to a library at sizes that depend on the batch, contract multiply-adds
differently from one program to the next, or keep excess precision across a bfloat16 rounding. One place sets the
options; everything that computes numbers goes through it.
"""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

# No contracted multiply-adds. XLA:CPU reads this one of the environment alone, when it makes its first program; among
# a program's own options it is taken and does nothing.
NO_CONTRACTION = "--xla_cpu_max_isa=AVX"
if "xla_cpu_max_isa" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_CONTRACTION}".strip()

CPU_OPTIONS: dict[str, bool | int | float | str] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_allow_excess_precision": False,
}


_platform = jax.make_user_context(default_value=None)


def compiling_for(platform: str) -> AbstractContextManager[Any]:
    """Within it steps are made for `platform`, as jax calls it, whatever this machine has."""
    return _platform(platform)


def platform() -> str:
    """What steps are made for: this machine's default, or what `compiling_for` names."""
    return _platform.value or jax.default_backend()


def options(platform: str) -> dict[str, bool | int | float | str]:
    """Compiler options for `platform` ("cpu", "tpu", "gpu"); only XLA:CPU needs any."""
    return dict(CPU_OPTIONS) if platform == "cpu" else {}


def jit(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """`jax.jit` with this platform's options. They are looked up at each call: none is needed at import.

    Takes jax.jit's keyword arguments. The underlying jitted function is `.jitted()`, for lowering ahead of time.
    """

    @functools.cache
    def made_with(chosen: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(function, compiler_options=dict(chosen), **arguments)

    def jitted() -> Any:
        return made_with(tuple(options(platform()).items()))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted()(*args, **kwargs)

    call.jitted = jitted  # pyright: ignore[reportAttributeAccessIssue]
    return call


def layers_at_once() -> int:
    """Layers of a run that one turn of the layer loop holds.

    On CPU a loop copies weights in and saved values out at every turn; unrolled, nothing is copied, and it compiles no
    slower. Elsewhere a turn is one layer: compile time is what counts.
    """
    return 8 if platform() == "cpu" else 1
