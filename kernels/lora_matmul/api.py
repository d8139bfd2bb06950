"""Mixed LoRA product added to a base projection: `y[t] += scales[s] x[t] A[s]^T B[s]`, s the slot of row t."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.lora_matmul import xla
from kernels.rows import Rows


@jax.custom_vjp
def lora_matmul(y: Float[Array, "T F"], x: Float[Array, "T D"], factors: Factors, rows: Rows) -> Float[Array, "T F"]:
    """Float32 `y` plus each row's own delta; rows without a slot keep the bits of `y`. `rows` are owned by slots.

    Differentiable in y, x and the factors a and b.
    """
    return _forward(y, x, factors, rows)[0]


def _forward(y, x, factors, rows):
    delta, inner = xla.forward(x, factors, rows)
    return jnp.where((rows.of_each() >= 0)[:, None], y + delta, y), (x, factors, rows, inner)


def _backward(residuals, dy):
    x, factors, rows, inner = residuals
    dx, da, db = xla.backward(x, factors, rows, inner, dy)
    return dy, dx, Factors(da, db, None, None), None  # pyright: ignore[reportArgumentType]


lora_matmul.defvjp(_forward, _backward)


def shrink(x, factors, rows):
    parts = []
    for r, g, m in rows.parts():
        slots = rows.owner[g]
        z = xla.dot("gmd,grd->gmr", xla.grouped(x[r], m), xla.of_slots(factors.a, slots, factors.offset, x.dtype))
        z = jnp.where((slots < 0)[:, None, None], 0.0, z * factors.scales[jnp.maximum(slots, 0)][:, None, None])
        parts.append(z.astype(x.dtype)[:, :m].reshape(-1, z.shape[-1]))
    return jnp.concatenate(parts)


def expand(z, factors, rows):
    parts = []
    for r, g, m in rows.parts():
        slots = rows.owner[g]
        y = xla.dot("gmr,grf->gmf", xla.grouped(z[r], m), xla.of_slots(factors.b, slots, factors.offset, z.dtype))
        y = jnp.where((slots < 0)[:, None, None], 0.0, y)
        parts.append(y[:, :m].reshape(-1, y.shape[-1]))
    return jnp.concatenate(parts)
