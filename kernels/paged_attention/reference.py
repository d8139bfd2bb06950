"""The obvious form of causal attention over a flat batch of whole sequences: the oracle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def attention(
    q: Float[Array, "T H K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T G V"],
    positions: Int32[Array, "T"],
    sequences: Int32[Array, "T"],
    scale: float | None = None,
) -> Float[Array, "T H V"]:
    """Softmax attention of every token to its own sequence up to itself; padding (position -1) gives 0.

    Scores are products times `scale`, by default `K ** -0.5`. Latent keys are `v = k[..., :V]`.
    """
    times = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    k, v = jnp.repeat(k, group, axis=1), jnp.repeat(v, group, axis=1)
    s = jnp.einsum("qhk,thk->hqt", q, k, preferred_element_type=jnp.float32) * times
    live = positions >= 0
    see = (sequences[:, None] == sequences[None]) & (positions[:, None] >= positions[None]) & live[:, None] & live[None]
    p = jax.nn.softmax(jnp.where(see[None], s, -jnp.inf), axis=-1, where=see[None])
    return jnp.einsum("hqt,thv->qhv", p, v.astype(jnp.float32)).astype(q.dtype)
