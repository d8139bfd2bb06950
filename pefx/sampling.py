"""Sampling a token from logits; a sample depends on its own row, seed and position, never on its batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt32


class Sampling(NamedTuple):
    """How each row samples: `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are off."""

    temperature: Float[Array, "Q"]
    top_p: Float[Array, "Q"]
    top_k: Int32[Array, "Q"]
    seed: UInt32[Array, "Q"]


def sample(logits: Float[Array, "Q V"], how: Sampling, positions: Int32[Array, "Q"]) -> Int32[Array, "Q"]:
    """One token a row. The key is `fold_in(seed, position)`; top-k is applied before top-p, both after temperature."""
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn() -> Int32[Array, "Q"]:
        scaled = logits / jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]
        kept = jnp.where(_kept(scaled, how), scaled, -jnp.inf)
        keys = jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(how.seed, positions)
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    some = jnp.any(how.temperature > 0)
    return jnp.where(how.temperature > 0, jax.lax.cond(some, drawn, lambda: greedy), greedy)


def _kept(scaled: Float[Array, "Q V"], how: Sampling) -> Array:
    """Which tokens top-k and top-p leave: ties at the threshold stay, the likeliest token always does."""
    vocabulary = scaled.shape[-1]
    ordered = -jnp.sort(-scaled, axis=-1)
    k = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, vocabulary), vocabulary)
    by_rank = jnp.arange(vocabulary, dtype=jnp.int32)[None] < k[:, None]
    probability = jax.nn.softmax(jnp.where(by_rank, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    inside = by_rank & (before < how.top_p[:, None])
    inside = inside | (jnp.arange(vocabulary, dtype=jnp.int32) == 0)[None]
    threshold = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return scaled >= threshold
