"""Gains by slot: each row's outputs times the numbers of its own slot, as DoRA and IA3 have them.

It reads every row once and writes it once; there is only a portable form.
"""

import jax
from jaxtyping import Array, Float, Int32

from kernels.rows import Rows
from kernels.slot_gain import xla


@jax.custom_vjp
def slot_gain(
    y: Float[Array, "T F"], gains: Float[Array, "G F"], offset: Int32[Array, ""], rows: Rows
) -> Float[Array, "T F"]:
    """`y[t] * gains[offset + s]`, s the slot that owns row t; rows without a slot keep their bits. In y's dtype.

    Multiplied in float32 and rounded once. Differentiable in y and gains; a slot's gradient is a sum over its own rows,
    in order.
    """
    return xla.forward(y, gains, offset, rows)


def _forward(y, gains, offset, rows):
    return slot_gain(y, gains, offset, rows), (y, gains, offset, rows)


def _backward(residuals, dy):
    y, gains, offset, rows = residuals
    return *xla.backward(y, gains, offset, rows, dy), None, None


slot_gain.defvjp(_forward, _backward)
