"""Sampling a token from logits; a sample depends on its own row, seed and position, never on its batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt32

from pefx.batch import Array


class Sampling(NamedTuple):
    """How each row samples: `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off."""

    temperature: Float[Array, "Q"]
    top_p: Float[Array, "Q"]
    min_p: Float[Array, "Q"]
    top_k: Int32[Array, "Q"]
    seed: UInt32[Array, "Q"]


def greedy(count: int) -> Sampling:
    """Rows whose likeliest token is taken, on the host."""
    off = np.zeros(count, np.float32)
    return Sampling(off, np.ones(count, np.float32), off, off.astype(np.int32), off.astype(np.uint32))


class Shaping(NamedTuple):
    """What becomes of the logits of the first `Z` rows before a token is drawn.

    Those of `tokens` (-1: none) are divided by `repeat`, where negative multiplied (Keskar et al. 2019, section 4.1);
    then `add` is added. A token whose bit in `allowed` is not set is never drawn; bit v % 32 of word v // 32 is v's.
    """

    tokens: Int32[Array, "Z J"]
    repeat: Float[Array, "Z J"]
    add: Float[Array, "Z J"]
    allowed: UInt32[Array, "Z W"]


def shaped(logits: Float[Array, "Q V"], how: Shaping) -> Float[Array, "Q V"]:
    """`logits` as tokens are to be drawn from; each token at most once in a row of `how.tokens`."""
    count, vocabulary = how.tokens.shape[0], logits.shape[1]
    rows = jnp.arange(count, dtype=jnp.int32)[:, None]
    old = logits[rows, jnp.maximum(how.tokens, 0)]
    new = jnp.where(old > 0, old / how.repeat, old * how.repeat) + how.add
    logits = logits.at[rows, jnp.where(how.tokens < 0, vocabulary, how.tokens)].set(new, mode="drop")
    bits = how.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None] & jnp.uint32(1)
    allowed = bits.reshape(count, -1)[:, :vocabulary] > 0
    return logits.at[:count].set(jnp.where(allowed, logits[:count], -jnp.inf))


def sample(logits: Float[Array, "Q V"], how: Sampling, positions: Int32[Array, "Q"]) -> Int32[Array, "Q"]:
    """One token a row, the key of a draw being `fold_in(seed, position)`.

    After temperature, first top-k, then top-p, then min-p leave tokens out.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn() -> Int32[Array, "Q"]:
        scaled = logits / jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]
        narrow = jnp.any((how.top_p < 1) | (how.top_k > 0) | (how.min_p > 0))
        kept = jax.lax.cond(narrow, lambda: jnp.where(_kept(scaled, how), scaled, -jnp.inf), lambda: scaled)
        keys = jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(how.seed, positions)
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    some = jnp.any(how.temperature > 0)
    return jnp.where(how.temperature > 0, jax.lax.cond(some, drawn, lambda: greedy), greedy)


def _kept(scaled: Float[Array, "Q V"], how: Sampling) -> Bool[Array, "Q V"]:
    """Which tokens are left: ties at the threshold stay, the likeliest token always does."""
    keys = _ordered(scaled)
    limit = jnp.where(how.top_k > 0, how.top_k, jnp.iinfo(jnp.int32).max)
    kept = keys >= _threshold(keys, jnp.ones(scaled.shape, jnp.int32), limit)
    # Rounding must not leave out a token where nothing is to be: such a row may be here for the sake of another.
    limit = jnp.where(how.top_p < 1, how.top_p, jnp.inf)
    kept &= keys >= _threshold(keys, jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1), limit)
    return kept & (scaled >= jnp.max(scaled, axis=-1, keepdims=True) + jnp.log(how.min_p)[:, None])


def _ordered(x: Float[Array, "Q V"]) -> Int32[Array, "Q V"]:
    """Integers in the order of floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & jnp.iinfo(jnp.int32).max)


def _threshold(keys: Int32[Array, "Q V"], weights: Array, limit: Array) -> Int32[Array, "Q 1"]:
    """The smallest number above which the weights of a row's keys sum up to less than `limit`; at most the largest key.

    By halving: to sort a row would take ten times as long.
    """

    def halve(_, ends):
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = jnp.sum(jnp.where(keys > middle, weights, 0), axis=-1, keepdims=True) < limit[:, None]
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    high = jnp.max(keys, axis=-1, keepdims=True)
    return jax.lax.fori_loop(0, 32, halve, (jnp.full(high.shape, jnp.iinfo(jnp.int32).min), high))[1]
