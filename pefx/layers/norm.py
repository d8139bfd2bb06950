"""Root-mean-square norm (Zhang and Sennrich 2019), in float32 as in Qwen3."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*rows D"], weight: Float[Array, "D"], epsilon: float) -> Float[Array, "*rows D"]:
    """`weight * x / rms(x)` over the last axis; computed in float32, rounded before the weight, in x's type."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return y.astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)
