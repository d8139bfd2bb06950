"""The obvious form of a LoRA product keyed by (expert, slot), row by row: the oracle."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def expert_lora(
    x: Float[Array, "M D"],
    a: Float[Array, "G E R D"] | Float[Array, "G R D"],
    b: Float[Array, "G E R F"] | Float[Array, "G R F"],
    scales: Float[Array, "G"],
    expert: Int32[Array, "M"],
    slots: Int32[Array, "M"],
) -> Float[Array, "M F"]:
    """`y[m] = scales[s] (x[m] a[s, e]^T) b[s, e]`; a factor without an expert axis is shared by the experts."""
    s, e = jnp.maximum(slots, 0), jnp.maximum(expert, 0)
    am = a[s, e] if a.ndim == 4 else a[s]
    bm = b[s, e] if b.ndim == 4 else b[s]
    z = jnp.einsum("md,mrd->mr", x, am, preferred_element_type=jnp.float32)
    y = jnp.einsum("mr,mrf->mf", z, bm.astype(jnp.float32)) * scales[s][:, None]
    return jnp.where(((slots >= 0) & (expert >= 0))[:, None], y, 0.0)
