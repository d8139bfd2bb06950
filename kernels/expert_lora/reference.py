"""The obvious form of a LoRA product keyed by (expert, slot), row by row: the oracle."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.factors import Factors


def expert_lora(
    x: Float[Array, "M D"],
    z: Float[Array, "M R"] | None,
    factors: Factors,
    expert: Int32[Array, "M"],
    slots: Int32[Array, "M"],
) -> tuple[Float[Array, "M F"] | Float[Array, ""], Float[Array, "M R"]]:
    """`z[m] = scales[s] (x[m] a[s, e]^T)` unless given, and `z[m] b[s, e]` (0 without b); 0 without a slot. Float32.

    A factor without an expert axis is shared by the experts. `factors.offset` is not looked at.
    """
    s, e = jnp.maximum(slots, 0), jnp.maximum(expert, 0)
    adapted = ((slots >= 0) & (expert >= 0))[:, None]

    def of_rows(factor):
        return (factor[s, e] if factor.ndim == 4 else factor[s]).astype(jnp.float32)

    if factors.a is not None:
        z = jnp.einsum("md,mrd->mr", x, of_rows(factors.a)) * factors.scales[s][:, None]
    z = jnp.where(adapted, z, 0.0)
    if factors.b is None:
        return jnp.zeros(()), z
    return jnp.where(adapted, jnp.einsum("mr,mrf->mf", z, of_rows(factors.b)), 0.0), z
