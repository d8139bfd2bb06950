"""Rotary position embedding (Su et al. 2021), halves rotated as in Qwen and Llama."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def angles(
    positions: Int32[Array, "T"], size: int, theta: float
) -> tuple[Float[Array, "T 1 h"], Float[Array, "T 1 h"]]:
    """Cosine and sine of each position at each of `size / 2` frequencies, float32. Made once per step."""
    frequency = theta ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = positions.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]


def rotate(
    x: Float[Array, "T H K"], cosine: Float[Array, "T 1 h"], sine: Float[Array, "T 1 h"]
) -> Float[Array, "T H K"]:
    """Rotate pairs (i, i + K/2); in x's type."""
    cosine, sine = cosine.astype(x.dtype), sine.astype(x.dtype)
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
