"""AdamW through optax, for one adapter at a time over the slot axis, and for a whole base."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int32

from pefx.adapters.bank import Bank, FactorTree
from pefx.batch import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyper:
    """AdamW's numbers, each a scalar or one per active slot. Loshchilov and Hutter 2019."""

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    clip: Float[Array, "..."]
    beta1: Float[Array, "..."]
    beta2: Float[Array, "..."]
    epsilon: Float[Array, "..."]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OptState:
    """Per slot: moments, the summed gradient not yet applied and its weight, and the count of updates.

    Trees are shaped like the bank's factors, float32.
    """

    mu: FactorTree
    nu: FactorTree
    gradient: FactorTree
    weight: Float[Array, "N"]
    count: Int32[Array, "N"]


def init_opt(bank: Bank) -> OptState:
    """Zero state for every slot of a bank."""

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bank.factors)

    return OptState(zeros(), zeros(), zeros(), jnp.zeros(bank.slots, jnp.float32), jnp.zeros(bank.slots, jnp.int32))


def adamw(hyper: Hyper, decayed=None) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay, rate. `decayed` masks which parameters decay."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.scale_by_adam(b1=hyper.beta1, b2=hyper.beta2, eps=hyper.epsilon),
        optax.add_decayed_weights(hyper.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(hyper.learning_rate),
    )


def update_slots(
    params: FactorTree, opt: OptState, hyper: Hyper, apply: Bool[Array, "A"]
) -> tuple[FactorTree, OptState, Float[Array, "A"]]:
    """One update of each active slot by its mean gradient, where `apply`; others keep what they have.

    Trees are compact, `[L, A, ...]`. Every slot has its own norm, rate, decay and count: nothing is shared.
    Returns new parameters, new state and the norm of each slot's mean gradient.
    """

    def one(param, mu, nu, gradient, weight, count, numbers):
        tx = adamw(numbers)
        mean = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-30), gradient)
        before = (optax.EmptyState(), optax.ScaleByAdamState(count, mu, nu), optax.EmptyState(), optax.EmptyState())
        with jax.numpy_dtype_promotion("standard"):  # optax raises a traced float32 rate to an int32 count
            updates, after = tx.update(mean, before, param)
        adam = cast(optax.ScaleByAdamState, cast(tuple, after)[1])
        return optax.apply_updates(param, updates), adam.mu, adam.nu, adam.count, optax.tree.norm(mean)

    axes = (1, 1, 1, 1, 0, 0, 0)
    outs = (1, 1, 1, 0, 0)
    param, mu, nu, count, norm = jax.vmap(one, axes, outs)(
        params, opt.mu, opt.nu, opt.gradient, opt.weight, opt.count, hyper
    )
    # A slot whose window held no weighted token has no gradient: its moments and count stay as they are.
    apply = apply & (opt.weight > 0)

    def choose(new, old):
        mask = apply.reshape((1, -1) + (1,) * (new.ndim - 2))
        return jnp.where(mask, new, old)

    def clear(old):
        return choose(jnp.zeros_like(old), old)

    state = OptState(
        jax.tree.map(choose, mu, opt.mu),
        jax.tree.map(choose, nu, opt.nu),
        jax.tree.map(clear, opt.gradient),
        jnp.where(apply, 0.0, opt.weight),
        jnp.where(apply, count, opt.count),
    )
    return jax.tree.map(choose, param, params), state, norm
