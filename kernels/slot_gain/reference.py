"""The obvious form of gains by slot, row by row: the oracle."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def slot_gain(y: Float[Array, "T F"], gains: Float[Array, "G F"], slots: Int32[Array, "T"]) -> Float[Array, "T F"]:
    """`y[t] * gains[s]` with `s = slots[t]`, rounded to y's dtype; `y[t]` where s is -1."""
    scaled = (y.astype(jnp.float32) * gains[jnp.maximum(slots, 0)]).astype(y.dtype)
    return jnp.where((slots >= 0)[:, None], scaled, y)
