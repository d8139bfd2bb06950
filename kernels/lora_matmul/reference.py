"""The obvious form of a mixed LoRA product, row by row: the oracle."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def lora_matmul(
    x: Float[Array, "T D"],
    a: Float[Array, "G R D"],
    b: Float[Array, "G R F"],
    scales: Float[Array, "G"],
    slots: Int32[Array, "T"],
) -> Float[Array, "T F"]:
    """`y[t] = scales[s] * (x[t] a[s]^T) b[s]` with `s = slots[t]`; zeros where s is -1. Float32."""
    s = jnp.maximum(slots, 0)
    z = jnp.einsum("td,trd->tr", x, a[s], preferred_element_type=jnp.float32)
    y = jnp.einsum("tr,trf->tf", z, b[s].astype(jnp.float32)) * scales[s][:, None]
    return jnp.where((slots >= 0)[:, None], y, 0.0)
