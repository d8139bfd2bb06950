"""Zeros to write into, one buffer at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def fresh(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of this shape and of `like`'s type that XLA takes for a value of its own.

    XLA makes equal zeros once and copies them into every loop that writes them: twice the work, and cold memory. The
    value hangs on `like` in a way that never holds. Integers are few: theirs are plain zeros.
    """
    if not jnp.issubdtype(like.dtype, jnp.floating):
        return jnp.zeros(shape, like.dtype)
    first = like.reshape(-1)[0]
    zero = jnp.zeros((), like.dtype)
    return jnp.broadcast_to(jnp.where(jax.lax.is_finite(first) | ~jax.lax.is_finite(first), zero, first), shape)
