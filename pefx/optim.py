"""AdamW: for one adapter at a time over the slot axis, to the bit on every mesh; through optax for a whole base."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int32

from pefx.adapters.bank import Bank
from pefx.adapters.fitting import FactorTree
from pefx.adapters.sites import width_axis
from pefx.adapters.slots import joined, parted, put_slot, slot_at
from pefx.batch import Array
from pefx.collectives import all_experts, group_slots, of_group, of_own, over_model, size
from pefx.mesh import EXPERT


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
    rates: dict[str, Float[Array, "A"]] | None = None,
) -> tuple[FactorTree, OptState, Float[Array, "A"]]:
    """Add each active slot's gradient to what it has, and where `apply` update it by the mean; others stay as they are.

    One slot after another: a slot has its own norm, rate, decay and count, and no other slot's numbers come near it.
    A slot past the end is padding. `rates` are multiples of the learning rate by leaf: what has none stays as it is.
    Returns factors, state and the norm of each slot's mean gradient.

    What lies with the experts is updated on every shard of an expert axis for the slots of all of them.
    """
    everyone = group_slots(slots, opt.count.shape[0] // size(EXPERT))
    held = _Held(factors, opt.mu, opt.nu, opt.gradient)
    weight = jnp.take(opt.weight, everyone, mode="clip") + of_group(gradients.weight)
    # Multiplied, not divided: XLA makes the one of the other where it sees fit, which would be another bit.
    inverse = 1.0 / jnp.maximum(weight, 1e-30)
    norms = _norms(held.gradient, gradients.sums, slots, everyone, inverse)
    # A slot whose window held no weighted token has no gradient: its moments and count stay as they are.
    apply = of_group(apply) & (weight > 0)
    before = jnp.take(opt.count, everyone, mode="clip")
    each = _Each(jax.tree.map(of_group, hyper), apply, before, inverse, of_group(norms), jax.tree.map(of_group, rates))
    own, with_experts = (held.map(lambda tree, i=i: tree and parted(tree)[i]) for i in (0, 1))
    sums = parted(gradients.sums)
    own = _update_all(own, sums[0], slots, jax.tree.map(of_own, each))
    with_experts = _update_all(with_experts, sums[1], everyone, each)
    parts = tuple(x and joined(x, y) for x, y in zip(own, with_experts, strict=True))
    done = _Held(*cast(tuple[Any, ...], parts))
    left = weight if opt.gradient is not None else jnp.zeros_like(weight)
    state = OptState(
        done.mu,
        done.nu,
        done.gradient,
        opt.weight.at[everyone].set(jnp.where(apply, 0.0, left), mode="drop"),
        opt.count.at[everyone].set(jnp.where(apply, before + 1, before), mode="drop"),
    )
    return done.factors, state, norms


class _Held(NamedTuple):
    """What there is of every slot, in trees shaped like the bank's factors."""

    factors: FactorTree
    mu: FactorTree
    nu: FactorTree
    gradient: FactorTree | None

    def map(self, function) -> "_Held":
        return _Held(*map(function, self))


class _Each(NamedTuple):
    """Numbers of each active slot: AdamW's, whether it is updated, updates so far, 1 / weight, norm of the mean, and
    rates by leaf.
    """

    hyper: Hyper
    apply: Bool[Array, "A"]
    count: Int32[Array, "A"]
    inverse: Float[Array, "A"]
    norm: Float[Array, "A"]
    rates: dict[str, Float[Array, "A"]] | None


def _norms(held: FactorTree | None, sums: FactorTree, slots, everyone, inverse) -> Float[Array, "A"]:
    """Norm of each own active slot's mean gradient.

    Squares are added expert by expert, then over the experts, then over sites: in one order, however experts lie.
    """

    def squares(part: int, places, inverse):
        old, new = None if held is None else parted(held)[part], parted(sums)[part]

        def one(i, found):
            total = slot_at(new, i)
            if old is not None:
                total = jax.tree.map(jnp.add, slot_at(old, places[i]), total)
            mine = jax.tree.map(lambda g: _squares(g * inverse[i]), total)
            return jax.tree.map(lambda x, y: x.at[i].set(y), found, mine)

        room = jax.tree.map(lambda x: jnp.zeros((places.shape[0], *x.shape[2:-2]), jnp.float32), new)
        return jax.lax.fori_loop(0, places.shape[0], one, room)

    own = squares(0, slots, of_own(inverse))
    with_experts = jax.tree.map(lambda x: jnp.sum(of_own(all_experts(x)), axis=1), squares(1, everyone, inverse))
    by_factor = joined(own, with_experts)
    total = jnp.zeros(slots.shape, jnp.float32)
    for site, pair in by_factor.items():
        for name, x in pair.items():
            total = total + (over_model(x) if width_axis(site, name) else x)
    return jnp.sqrt(total)


def _squares(gradient: Float[Array, "L 1 ..."]) -> Float[Array, "..."]:
    """Sum of squares of one slot's part, of each expert where there are any."""
    return jnp.sum(gradient * gradient, axis=(0, 1, gradient.ndim - 2, gradient.ndim - 1))


def _update_all(held: _Held, sums: FactorTree, slots: Int32[Array, "A"], each: _Each) -> _Held:
    """`update_slots` of one part of all trees."""
    leaves = jax.tree.leaves(held.factors)
    if not leaves:
        return held
    last = leaves[0].shape[1] - 1

    def one(i, held):
        place = jnp.minimum(slots[i], last)
        # A branch of its own reads copies and is over before anything is written: so the bank is updated in place.
        old = slot_at(held, place)
        parts = (old, slot_at(sums, i), jax.tree.map(lambda x: x[i], each))
        return put_slot(held, place, jax.lax.cond(slots[i] <= last, _update, lambda *parts: parts[0], *parts))

    return jax.lax.fori_loop(0, slots.shape[0], one, held)


def _update(held: _Held, sums: FactorTree, each: _Each) -> _Held:
    """One slot's part: AdamW of Loshchilov and Hutter 2019, algorithm 2, as optax has it. Trees are `[L, 1, ...]`."""
    total = sums if held.gradient is None else jax.tree.map(jnp.add, held.gradient, sums)
    # As optax.clip_by_global_norm does, with a norm that is not of this part alone.
    shrink = jnp.where(each.norm < each.hyper.clip, 1.0, each.hyper.clip / jnp.maximum(each.norm, 1e-30))
    mean = jax.tree.map(lambda g: g * each.inverse * shrink, total)
    hyper, count = each.hyper, (each.count + 1).astype(jnp.float32)
    # XLA joins a division by a scalar with the one that follows, or makes products of several, as it sees fit in each
    # program, and that would be another bit: so it is given reciprocals, and does not see how they came about.
    first, second = jax.lax.optimization_barrier((1.0 / (1.0 - hyper.beta1**count), 1.0 / (1.0 - hyper.beta2**count)))

    mu = jax.tree.map(lambda m, g: hyper.beta1 * m + (1.0 - hyper.beta1) * g, held.mu, mean)
    nu = jax.tree.map(lambda n, g: hyper.beta2 * n + (1.0 - hyper.beta2) * (g * g), held.nu, mean)

    def updated(path, x, m, n):
        rate = hyper.learning_rate if each.rates is None else hyper.learning_rate * each.rates[path[-1].key]
        adam = m * first / (jnp.sqrt(n * second) + hyper.epsilon)
        return x - rate * (adam + hyper.weight_decay * x)

    factors = jax.tree_util.tree_map_with_path(updated, held.factors, mu, nu)

    def choose(new, old):
        return jax.tree.map(lambda x, y: jnp.where(each.apply, x, y), new, old)

    return _Held(
        choose(factors, held.factors),
        choose(mu, held.mu),
        choose(nu, held.nu),
        None if held.gradient is None else choose(jax.tree.map(jnp.zeros_like, total), total),
    )
