"""AdamW through optax, for one adapter at a time over the slot axis, and for a whole base."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int32

from pefx.adapters.bank import Bank, FactorTree, put_slot, slot_at
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

    Trees are shaped like the bank's factors, float32. `gradient` is None where every step is an update of its own.
    """

    mu: FactorTree
    nu: FactorTree
    gradient: FactorTree | None
    weight: Float[Array, "N"]
    count: Int32[Array, "N"]


def init_opt(bank: Bank, accumulate: bool = True) -> OptState:
    """Zero state for every slot of a bank, with room for gradients to add up over steps where `accumulate`."""

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bank.factors)

    gradient = zeros() if accumulate else None
    return OptState(zeros(), zeros(), gradient, jnp.zeros(bank.slots, jnp.float32), jnp.zeros(bank.slots, jnp.int32))


def adamw(hyper: Hyper, decayed=None) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay, rate. `decayed` masks which parameters decay."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.scale_by_adam(b1=hyper.beta1, b2=hyper.beta2, eps=hyper.epsilon),
        optax.add_decayed_weights(hyper.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(hyper.learning_rate),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gradients:
    """A step's sums for its `A` active slots: `sums [L, A, ...]` by site, and `weight`, what each is a sum over."""

    sums: FactorTree
    weight: Float[Array, "A"]


def update_slots(
    factors: FactorTree,
    opt: OptState,
    gradients: Gradients,
    slots: Int32[Array, "A"],
    hyper: Hyper,
    apply: Bool[Array, "A"],
) -> tuple[FactorTree, OptState, Float[Array, "A"]]:
    """Add each active slot's gradient to what it has, and where `apply` update it by the mean; others stay as they are.

    One slot after another: a slot has its own norm, rate, decay and count, and no other slot's numbers come near it.
    A slot past the end is padding. Returns factors, state and the norm of each slot's mean gradient.
    """
    last = opt.count.shape[0] - 1

    def one(i, carry):
        held, norms = carry
        place = jnp.minimum(slots[i], last)
        # A branch of its own reads copies and is over before anything is written: so the bank is updated in place.
        live, old = slots[i] <= last, slot_at(held, place)
        parts = (*old, slot_at(gradients, i), _scalars(hyper, i), apply[i])
        new, norm = jax.lax.cond(live, _update, lambda *parts: (parts[:2], jnp.zeros((), jnp.float32)), *parts)
        return put_slot(held, place, new), norms.at[i].set(norm)

    (factors, opt), norms = jax.lax.fori_loop(0, slots.shape[0], one, ((factors, opt), jnp.zeros(slots.shape)))
    return factors, opt, norms


def _update(param: FactorTree, opt: OptState, gradients: Gradients, hyper: Hyper, apply: Bool[Array, ""]):
    """One slot's part of `update_slots`: ((factors, state), norm of its mean gradient); trees are `[L, 1, ...]`."""
    total, weight = gradients.sums, opt.weight + gradients.weight
    if opt.gradient is not None:
        total = jax.tree.map(jnp.add, opt.gradient, total)
    # Multiplied, not divided: XLA makes the one of the other where it sees fit, which would be another bit.
    inverse = 1.0 / jnp.maximum(weight[0], 1e-30)
    mean = jax.tree.map(lambda g: g * inverse, total)
    empty = optax.EmptyState()
    before = (empty, optax.ScaleByAdamState(opt.count[0], opt.mu, opt.nu), empty, empty)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a traced float32 rate to an int32 count
        updates, after = adamw(hyper).update(mean, before, param)
    adam = cast(optax.ScaleByAdamState, cast(tuple, after)[1])
    # A slot whose window held no weighted token has no gradient: its moments and count stay as they are.
    apply = apply & (weight[0] > 0)

    def choose(new, old):
        return jax.tree.map(lambda x, y: jnp.where(apply, x, y), new, old)

    state = OptState(
        choose(adam.mu, opt.mu),
        choose(adam.nu, opt.nu),
        None if opt.gradient is None else choose(jax.tree.map(jnp.zeros_like, total), total),
        jnp.zeros_like(weight) if opt.gradient is None else jnp.where(apply, 0.0, weight),
        jnp.where(apply, jnp.reshape(adam.count, (1,)), opt.count),
    )
    return (choose(optax.apply_updates(param, updates), param), state), optax.tree.norm(mean)


def _scalars(hyper: Hyper, index: Int32[Array, ""]) -> Hyper:
    """The numbers of one active slot."""
    return jax.tree.map(lambda x: x[index], hyper)
