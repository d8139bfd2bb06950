"""The obvious form of choosing keys over a flat batch of whole sequences: the oracle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def chosen(
    q: Float[Array, "T H K"],
    weights: Float[Array, "T H"],
    k: Float[Array, "T K"],
    positions: Int32[Array, "T"],
    sequences: Int32[Array, "T"],
    count: int,
) -> Bool[Array, "T T"]:
    """Which tokens each one attends to: the `count` best scored of its own sequence up to itself, or all of them.

    A score is `sum_h weights_h relu(q_h . k)` (DeepSeek-V3.2, eq. 1). Of equal ones the first is taken.
    """
    dots = jnp.einsum("qhk,tk->hqt", q, k, preferred_element_type=jnp.float32)
    scores = jnp.sum(jnp.maximum(dots, 0) * weights.T[..., None], axis=0)
    live = positions >= 0
    see = (sequences[:, None] == sequences[None]) & (positions[:, None] >= positions[None]) & live[:, None] & live[None]
    scores = jnp.where(see, scores, -jnp.inf)
    best = jax.lax.top_k(scores, min(count, k.shape[0]))[1]
    return see & jnp.any(best[..., None] == jnp.arange(k.shape[0])[None, None], axis=1)
