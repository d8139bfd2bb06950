"""The losses of the table in `pefx.losses.rows`, over live log-probabilities: every policy its own, in one program.

All surrogates are computed for every token, each from harmless numbers where a token has another one, so that neither
values nor gradients of one policy meet those of others; then a token takes its own. What is summed over a sequence is
laid out by (sequence, position) first: no bit depends on where in the batch a sequence lies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from pefx.batch import Array, TokenBatch
from pefx.losses.rows import LOSSES, Surrogate

# Log-ratios are cut here before they become ratios: at e^20 a ratio says nothing, and float32 ends at e^88.
HIGHEST = 20.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyTerms:
    """Constants of the tokens of a step: `advantages`, `old_logprobs` of the policy that ratios are over, and
    `reference_logprobs` of the base (0 where the loss reads none), in nats. `partners` are, of sequences in pairs, the
    one each is paired with (-1: none), counted as the batch counts sequences; both are in the same shard's rows.
    """

    advantages: Float[Array, "T"]
    old_logprobs: Float[Array, "T"]
    reference_logprobs: Float[Array, "T"]
    partners: Int32[Array, "S"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyNumbers:
    """Of each active adapter: its `loss` (`NUMBER` of the table) and that loss's numbers; how much the KL divergence
    from the base (`kl`) and the entropy weigh in it; and the `denominator` of its sums, of losses and of gradients.
    """

    loss: Int32[Array, "A"]
    clip_low: Float[Array, "A"]
    clip_high: Float[Array, "A"]
    beta: Float[Array, "A"]
    kl: Float[Array, "A"]
    entropy: Float[Array, "A"]
    denominator: Float[Array, "A"]


class Token(NamedTuple):
    """What a surrogate reads of each token. `drift` is the log-ratio to the old policy: of the token, of its sequence
    or of its pair, as the row of the table says.
    """

    logprobs: Float[Array, "T"]
    drift: Float[Array, "T"]
    advantages: Float[Array, "T"]
    clip_low: Float[Array, "T"]
    clip_high: Float[Array, "T"]
    beta: Float[Array, "T"]


def _ratio(x: Token) -> Float[Array, "T"]:
    return jnp.exp(jnp.minimum(x.drift, HIGHEST))


def _clip(ratio: Float[Array, "T"], x: Token) -> Float[Array, "T"]:
    return jnp.clip(ratio, 1.0 - x.clip_low, 1.0 + x.clip_high)


def _clipped(x: Token) -> Float[Array, "T"]:
    ratio = _ratio(x)
    return -jnp.minimum(ratio * x.advantages, _clip(ratio, x) * x.advantages)


def _clipped_weight(x: Token) -> Float[Array, "T"]:
    return -jax.lax.stop_gradient(_clip(_ratio(x), x)) * x.advantages * x.logprobs


def _quadratic(x: Token) -> Float[Array, "T"]:
    return 0.5 * x.beta * x.drift * x.drift - x.logprobs * x.advantages


SURROGATES: dict[Surrogate, Callable[[Token], Float[Array, "T"]]] = {
    "cross_entropy": lambda x: -x.logprobs,
    "ratio": lambda x: -_ratio(x) * x.advantages,
    "clipped": _clipped,
    "clipped_weight": _clipped_weight,
    "quadratic": _quadratic,
    "logistic": lambda x: jax.nn.softplus(-x.beta * x.advantages * x.drift),
}
_SURROGATE = np.asarray([list(SURROGATES).index(row.surrogate) for row in LOSSES.values()], np.int32)
_BY_SEQUENCE, _BY_PAIR, _OF_BASE = (
    np.asarray([getattr(row, field) == word for row in LOSSES.values()])
    for field, word in (("over", "sequence"), ("over", "pair"), ("old", "base"))
)


def policy_losses(
    logprobs: Float[Array, "T"],
    entropies: Float[Array, "T"],
    weights: Float[Array, "T"],
    batch: TokenBatch,
    terms: PolicyTerms,
    numbers: PolicyNumbers,
) -> Float[Array, "T"]:
    """Each token's weighted loss (nats) by its own policy's row; 0 where it has no weight, whatever else it holds."""
    live = (jnp.asarray(batch.slots) >= 0) & (weights != 0)
    own = jax.tree.map(lambda x: jnp.asarray(x)[jnp.maximum(batch.slots, 0)], numbers)
    drift = _drift(logprobs, live, own.loss, batch, terms)
    token = Token(logprobs, drift, jnp.asarray(terms.advantages), own.clip_low, own.clip_high, own.beta)
    losses = jnp.zeros_like(logprobs)
    for index, surrogate in enumerate(SURROGATES.values()):
        mine = live & (jnp.asarray(_SURROGATE)[own.loss] == index)
        losses = jnp.where(mine, surrogate(_where(mine, token)), losses)
    anchored = live & (own.kl != 0)
    away = jnp.minimum(jnp.where(anchored, terms.reference_logprobs - logprobs, 0.0), HIGHEST)
    losses = losses + own.kl * (jnp.expm1(away) - away) - own.entropy * entropies
    return jnp.where(live, losses * weights, 0.0)


def _where(mine: Bool[Array, "T"], token: Token) -> Token:
    return Token(*(jnp.where(mine, x, 0.0) for x in token))


def _drift(logprobs, live, loss, batch: TokenBatch, terms: PolicyTerms) -> Float[Array, "T"]:
    """The log-ratio that each token's loss reads."""
    by_sequence, by_pair, of_base = (jnp.asarray(rows)[loss] for rows in (_BY_SEQUENCE, _BY_PAIR, _OF_BASE))
    old = jnp.where(of_base, terms.reference_logprobs, terms.old_logprobs)
    own = logprobs - old
    together = live & (by_sequence | by_pair)
    # The last row is of tokens that belong to nobody, and of sequences without a partner: it stays zero.
    count = batch.pages.shape[0]
    partners = jnp.append(jnp.where(terms.partners < 0, count, terms.partners), jnp.asarray(count, jnp.int32))
    place = jnp.where(together, batch.sequences, count), jnp.where(together, batch.positions, 0)
    empty = jnp.zeros((count + 1, batch.pages.shape[1] * batch.page_size), jnp.float32)
    sums = jnp.sum(empty.at[place].add(jnp.where(together, own, 0.0)), axis=1)
    tokens = jnp.sum(empty.at[place].add(together.astype(jnp.float32)), axis=1)

    def spread(x: Float[Array, "S1"]) -> Float[Array, "T"]:
        return jnp.broadcast_to(x[:, None], empty.shape)[place]

    mean, margin = spread(sums / jnp.maximum(tokens, 1.0)), spread(sums - sums[partners])
    return jnp.where(by_sequence, mean, jnp.where(by_pair, margin, own))
