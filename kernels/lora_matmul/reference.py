"""The obvious form of a mixed LoRA product, row by row: the oracle."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def shrink(
    x: Float[Array, "T D"], a: Float[Array, "G R D"], scales: Float[Array, "G"], slots: Int32[Array, "T"]
) -> Float[Array, "T R"]:
    """`z[t] = scales[s] x[t] a[s]^T` with `s = slots[t]`; zeros where s is -1. Float32."""
    s = jnp.maximum(slots, 0)
    z = jnp.einsum("td,trd->tr", x, a[s], preferred_element_type=jnp.float32) * scales[s][:, None]
    return jnp.where((slots >= 0)[:, None], z, 0.0)


def expand(z: Float[Array, "T R"], b: Float[Array, "G R F"], slots: Int32[Array, "T"]) -> Float[Array, "T F"]:
    """`y[t] = z[t] b[s]` with `s = slots[t]`; zeros where s is -1. Float32."""
    y = jnp.einsum("tr,trf->tf", z, b[jnp.maximum(slots, 0)].astype(jnp.float32))
    return jnp.where((slots >= 0)[:, None], y, 0.0)


def lora_matmul(
    x: Float[Array, "T D"],
    a: Float[Array, "G R D"],
    b: Float[Array, "G R F"],
    scales: Float[Array, "G"],
    slots: Int32[Array, "T"],
) -> Float[Array, "T F"]:
    """`y[t] = scales[s] * (x[t] a[s]^T) b[s]` with `s = slots[t]`; zeros where s is -1. Float32."""
    return expand(shrink(x, a, scales, slots), b, slots)
