"""Runs the TPU's kernels in the interpreter."""

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreted

from kernels.implementation import INTERPRETED, implementation


def in_the_interpreter(function, *arguments):
    """What a compiled function of interpreted kernels returns, finished before anything else is compiled; no race."""
    with implementation(INTERPRETED):
        found = jax.block_until_ready(function(*arguments))
    assert interpreted.races is None or not interpreted.races.races_found
    return found
