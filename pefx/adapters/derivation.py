"""Methods whose factors are made of other numbers: how they are made, and how their gradients come back.

The model and its kernels know factors alone, whatever the methods of a batch. A step differentiates by the factors;
here those gradients become ones of the leaves, and after the update the leaves become factors again. Each slot's
numbers follow from its own leaves, and are chosen, never mixed with those of others.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pefx.adapters.matrices import matrices
from pefx.adapters.methods.method import Given, sizes
from pefx.adapters.methods.recipe import Recipe
from pefx.adapters.sites import DIVIDED, SITES, home
from pefx.collectives import all_experts, of_group, of_own, over_model
from pefx.model import Base

FACTORS = ("a", "b", "gains")
Tree = dict[str, dict[str, Any]]  # by site and leaf: [L, N, (E,) rows, columns]


@runtime_checkable
class Slots(Protocol):
    """A bank, or a part of one: see `pefx.adapters.bank`."""

    @property
    def factors(self) -> Tree: ...
    @property
    def scales(self) -> Float[Array, "N"]: ...
    @property
    def kinds(self) -> dict[str, Int32[Array, "N"]] | None: ...
    @property
    def recipes(self) -> tuple[Recipe, ...]: ...


def derived(base: Base, slots: Slots) -> Tree:
    """The slots' leaves, with factors as their recipes make them; gains of sites that adapters lack are one."""
    found = {site: dict(leaves) for site, leaves in slots.factors.items()}
    for site, own in found.items():
        if "gains" in own and slots.kinds is not None:
            own["gains"] = jnp.where(_kinds(slots, site, own["gains"]) < 0, 1.0, own["gains"])  # decayed, else
    for index, recipe, site, holder, given in _each(base, slots):
        leaves, own = _leaves(recipe, site, slots.factors[holder], given), slots.factors[site]
        for name, made in _derive(recipe, leaves, given).items():
            found[site][name] = _chosen(slots, site, index, _padded(made, own[name]), found[site][name])
    return found


def pulled(base: Base, slots: Slots, sums: Tree) -> Tree:
    """Gradients of the slots' leaves, from those of their factors."""
    found, totals = _own(slots, sums), {}
    for index, recipe, site, holder, given in _each(base, slots):
        leaves = _leaves(recipe, site, slots.factors[holder], given)
        made, pull = jax.vjp(lambda own, recipe=recipe, given=given: _derive(recipe, own, given), leaves)
        (through,) = pull({name: _fitted(sums[site][name], x) for name, x in made.items()})
        for name, leaf in recipe.row.leaves.items():
            passes = name in FACTORS and name not in made
            total = through[name] + _fitted(sums[site][name], through[name]) if passes else through[name]
            if leaf.columns not in ("reads", "writes") and getattr(SITES[site], leaf.side) in DIVIDED:
                total = over_model(total)
            if recipe.sites:
                total = _held(site, total)
            at = index, holder, name
            totals[at] = totals[at] + total if at in totals else total  # of sites that share, in their order
    for (index, holder, name), total in totals.items():
        found[holder][name] = _chosen(slots, holder, index, _padded(total, found[holder][name]), found[holder][name])
    return found


def _derive(recipe: Recipe, leaves: Mapping[str, Array], given: Given) -> dict[str, Array]:
    """What a recipe makes of leaves.

    Slot after slot: of all at once a product would have as many rows as there are slots, and bits that depend on it.
    """
    derive = recipe.derive
    assert derive is not None

    def one(slot: tuple[dict[str, Array], Array]) -> dict[str, Array]:
        own, scale = slot
        made = derive({name: x[:, None] for name, x in own.items()}, given._replace(scales=scale[None]))
        return {name: x[:, 0] for name, x in made.items()}

    made = jax.lax.map(one, ({name: jnp.moveaxis(x, 1, 0) for name, x in leaves.items()}, given.scales))
    return {name: jnp.moveaxis(x, 0, 1) for name, x in made.items()}


def _each(base: Base, slots: Slots):
    """(number, recipe, site, who holds its leaves, what `derive` is given) of all recipes, and the sites that each has
    in this base.
    """
    for index, recipe in enumerate(slots.recipes, 1):
        held_there = base.shared[recipe.name]
        common = home(recipe.sites, held_there)
        for site in recipe.sites or held_there:
            holder, shared = common or site, held_there.get(site)
            if shared is None or not set(recipe.row.leaves) <= set(slots.factors.get(holder, ())):
                continue
            reads = SITES[site].reads in DIVIDED

            def over_reads(x: Array, reads=reads) -> Array:
                return over_model(x) if reads else x

            scales = slots.scales if SITES[site].kind == "experts" else of_own(slots.scales)
            held = {name: jnp.asarray(x[...]) for name, x in shared.items()}
            whole = lambda site=site: matrices(base, site)  # noqa: E731
            yield index, recipe, site, holder, Given(held, whole, scales, over_reads, jax.lax.stop_gradient, _beside)


def _beside(x: Array, y: Array) -> Array:
    return jnp.concatenate([x, y], axis=-2)


def _cut(recipe: Recipe, leaves: Mapping[str, Array]) -> dict[str, Array]:
    """A recipe's own leaves, without the padding of the bank's."""
    own = sizes(recipe.rank, recipe.units)

    def part(name: str) -> Array:
        leaf, x = recipe.row.leaves[name], leaves[name][: 1 if recipe.tied else None]
        return x[..., : own[leaf.rows], : own.get(leaf.columns, x.shape[-1])]

    return {name: part(name) for name in recipe.row.leaves}


def _leaves(recipe: Recipe, site: str, held: Mapping[str, Array], given: Given) -> dict[str, Array]:
    """A recipe's leaves at a site; of what all sites share, a copy for each expert, for all slots of their axis."""
    own = _cut(recipe, held)
    if not recipe.sites or SITES[site].kind != "experts":
        return own
    experts = next(iter(given.shared.values())).shape[1]

    def spread(x: Array) -> Array:
        everyone = jnp.moveaxis(of_group(jnp.moveaxis(x, 1, 0)), 0, 1)
        return jnp.repeat(everyone[:, :, None], experts, axis=2)

    return {name: spread(x) for name, x in own.items()}


def _held(site: str, total: Array) -> Array:
    """A gradient of what all sites share, as it is held: of experts' copies the sum, in the order of experts."""
    if SITES[site].kind != "experts":
        return total
    each = jnp.moveaxis(all_experts(total, axis=2), 2, 0)
    together, _ = jax.lax.scan(lambda so_far, one: (so_far + one, None), jnp.zeros_like(each[0]), each)
    return of_own(together, axis=1)


def _fitted(x: Array, like: Array) -> Array:
    """The part of a padded array that is as large as `like`."""
    return x[: like.shape[0], ..., : like.shape[-2], : like.shape[-1]]


def _padded(x: Array, like: Array) -> Array:
    """An array with zeros up to the size of `like`; slots are all there."""
    room = [0 if axis == 1 else size - x.shape[axis] for axis, size in enumerate(like.shape)]
    return jnp.pad(x, [(0, more) for more in room])


def _chosen(slots: Slots, site: str, index: int, new: Array, old: Array) -> Array:
    """`new` for the slots of one recipe, `old` for others."""
    return jnp.where(_kinds(slots, site, old) == index, new, old)


def _own(slots: Slots, sums: Tree) -> Tree:
    """Gradients at sites that adapters have; none at others, where gains would be learned all the same."""
    if slots.kinds is None:
        return {site: dict(leaves) for site, leaves in sums.items()}
    return {
        site: {name: jnp.where(_kinds(slots, site, x) < 0, 0.0, x) for name, x in leaves.items()}
        for site, leaves in sums.items()
    }


def _kinds(slots: Slots, site: str, like: Array) -> Array:
    """Those of a site, to stand beside an array of all slots."""
    assert slots.kinds is not None
    kinds = slots.kinds[site] if like.ndim == 5 else of_own(slots.kinds[site])
    return kinds.reshape(1, -1, *(1,) * (like.ndim - 2))
