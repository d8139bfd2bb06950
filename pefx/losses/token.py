"""Log-probabilities and entropies of tokens, cross entropy by slot, and the routers' load balance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pefx.collectives import leave, own_part, size
from pefx.mesh import MODEL


def token_logprobs(logits: Float[Array, "Q V"], targets: Int32[Array, "Q"]) -> Float[Array, "Q"]:
    """`log softmax(logits)[target]` in float32; 0 where the target is -1. `logits` are this shard's vocabulary."""
    if size(MODEL) == 1:
        chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=-1)[:, 0]
        return jnp.where(targets >= 0, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
    local, inside = own_part(targets, logits.shape[1])
    chosen = leave(jnp.where(inside, jnp.take_along_axis(logits, local[:, None], axis=-1)[:, 0], 0.0))
    highest = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits, axis=-1)), MODEL)
    total = leave(jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))
    return jnp.where(targets >= 0, chosen - highest - jnp.log(total), 0.0)


def entropies(logits: Float[Array, "Q V"]) -> Float[Array, "Q"]:
    """Entropy of each row's softmax in nats, float32. `logits` are this shard's vocabulary."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    if size(MODEL) > 1:
        highest = jax.lax.pmax(highest, MODEL)
    below = logits - highest[:, None]
    likely = jnp.exp(below)
    total = leave(jnp.sum(likely, axis=-1))
    return jnp.log(total) - leave(jnp.sum(likely * below, axis=-1)) / total


def cross_entropy(
    logprobs: Float[Array, "T"], weights: Float[Array, "T"], slots: Int32[Array, "T"], count: int
) -> tuple[Float[Array, "A"], Float[Array, "A"]]:
    """Per slot: the weighted sum of negative log-probabilities (nats) and the sum of weights.

    A slot's sums run over its own rows in order; rows of slot -1 are nobody's.
    """
    losses = jnp.where(weights != 0, -logprobs * weights, 0.0)
    return sum_by_slot(losses, slots, count), sum_by_slot(weights, slots, count)


def sum_by_slot(x: Float[Array, "T"], slots: Int32[Array, "T"], count: int) -> Float[Array, "A"]:
    """The sum of each slot's own rows, in order."""
    mine = slots[None] == jnp.arange(count, dtype=jnp.int32)[:, None]
    return jnp.sum(jnp.where(mine, x[None], 0.0), axis=1)


def balance(load: Float[Array, "Lm E"], ids: Int32[Array, "Lm T k"], live: Float[Array, "T"]) -> Float[Array, ""]:
    """Load-balancing loss of the routers (Fedus et al. 2021, eq. 4), 1 when even; for training a base only."""
    experts, tokens = load.shape[1], jnp.maximum(jnp.sum(live), 1.0)
    one_hot = jax.nn.one_hot(ids, experts, dtype=jnp.float32) * live[None, :, None, None]
    fraction = jnp.sum(one_hot, axis=(1, 2)) / (tokens * ids.shape[2])
    return experts * jnp.mean(jnp.sum(fraction * load / tokens, axis=1))
