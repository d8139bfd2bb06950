"""Mixed LoRA product added to a base projection: `y[t] += scales[s] x[t] A[s]^T B[s]`, s the slot of row t.

Its two halves are operations of their own, for layers whose experts share the hidden-side factor.
"""

import jax
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.implementation import use_pallas
from kernels.lora_matmul import pallas_tpu, xla
from kernels.rows import Rows


@jax.custom_vjp
def lora_matmul(y: Float[Array, "T F"], x: Float[Array, "T D"], factors: Factors, rows: Rows) -> Float[Array, "T F"]:
    """`y` plus each row's own delta, in y's dtype; rows without a slot keep the bits of `y`. `rows` are owned by slots.

    Added in float32 and rounded once; bit for bit `expand(y, shrink(x))`. `y` is float32 or of x's dtype.
    Differentiable in y, x and the factors a and b.
    """
    return _forward(y, x, factors, rows)[0]


def _form(x, factors, rows):
    """The module that computes this: the portable form or the TPU's."""
    return pallas_tpu if use_pallas("lora_matmul", pallas_tpu.unsupported(x, factors, rows)) else xla


def _forward(y, x, factors, rows):
    total, z = _form(x, factors, rows).forward(y, x, factors, rows)
    return total, (x, factors, rows, z)


def _backward(residuals, dy):
    x, factors, rows, z = residuals
    dx, da, db = _form(x, factors, rows).backward(x, factors, rows, z, dy)
    return dy, dx, Factors(da, db, None, None), None  # pyright: ignore[reportArgumentType]


lora_matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def shrink(x: Float[Array, "T D"], factors: Factors, rows: Rows) -> Float[Array, "T R"]:
    """`scales[s] x a[s]^T` of each row's own slot, in x's dtype; exact zeros where there is none. `factors.b` is None.

    Differentiable in x and the factor a.
    """
    return _form(x, factors, rows).shrink(x, factors, rows)


def _shrink_forward(x, factors, rows):
    return shrink(x, factors, rows), (x, factors, rows)


def _shrink_backward(residuals, dz):
    x, factors, rows = residuals
    dx, da = _form(x, factors, rows).shrink_backward(x, factors, rows, dz)
    return dx, Factors(da, None, None, None), None  # pyright: ignore[reportArgumentType]


shrink.defvjp(_shrink_forward, _shrink_backward)


@jax.custom_vjp
def expand(y: Float[Array, "T F"], z: Float[Array, "T R"], factors: Factors, rows: Rows) -> Float[Array, "T F"]:
    """`y + z b[s]` of each row's own slot, in y's dtype; rows without a slot keep the bits of `y`. `factors.a` is None.

    `y` is float32 or of z's dtype. Differentiable in y, z and the factor b.
    """
    return _form(z, factors, rows).expand(y, z, factors, rows)


def _expand_forward(y, z, factors, rows):
    return expand(y, z, factors, rows), (z, factors, rows)


def _expand_backward(residuals, dy):
    z, factors, rows = residuals
    dz, db = _form(z, factors, rows).expand_backward(z, factors, rows, dy)
    return dy, dz, Factors(None, db, None, None), None  # pyright: ignore[reportArgumentType]


expand.defvjp(_expand_forward, _expand_backward)
