"""The obvious form of a grouped matmul: one product per row, with its group's matrix."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def grouped_matmul(x: Float[Array, "M D"], w: Float[Array, "E D F"], group: Int32[Array, "M"]) -> Float[Array, "M F"]:
    """`y[m] = x[m] w[group[m]]`; zeros where the group is -1. Float32."""
    y = jnp.einsum("md,mdf->mf", x, w[jnp.maximum(group, 0)], preferred_element_type=jnp.float32)
    return jnp.where((group >= 0)[:, None], y, 0.0)
