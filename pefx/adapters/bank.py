"""The bank: N adapters stacked on a slot axis, behind the layer axis. Ranks differ by zero padding.

At each site a bank has factors `a` and `b`, `gains` where some method has them, and the leaves of methods that derive
those from others (`pefx.adapters.derivation`).

A `Bank` is resident and read in place; `ActiveSlots` is a compact copy of the slots a training step updates, scanned
layer by layer so that its gradient is as small as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from kernels.factors import Factors
from pefx.adapters.derivation import FACTORS, derived
from pefx.adapters.fitting import MEMORY, FactorTree, memory_of, padded_factors
from pefx.adapters.methods.recipe import Recipe, needs_room, rank_in_bank, recipe_of, recipes_of
from pefx.adapters.methods.table import GAINED, Adapter, adapted_sites, leaf_shapes, scale
from pefx.adapters.sharded_slots import by_slot, of_one, read_slot, write_slot
from pefx.adapters.sites import SITES
from pefx.adapters.slots import is_split, joined, parted, put_slots, take_slots
from pefx.batch import Array
from pefx.collectives import group_slots, index, of_own, size
from pefx.compiler import jit
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.layers.linear import Adapters
from pefx.layers.memory import MemoryFactors
from pefx.mesh import DATA, EXPERT, fetch, of_base, sharded, share
from pefx.model import Base

RANK_MULTIPLE = 8  # a rank of one row would take other bits, and does not compile for TPUs


def _of_kind(factors: FactorTree, kind: str) -> dict[str, dict[str, Any]]:
    """By site, the factors that a layer of this kind has; "across_experts": those that the experts of a layer share."""
    found = {}
    for site, leaves in factors.items():
        named = SITES[site].kind
        part = {name: leaves[name] for name in (leaves if named == "memory" else FACTORS) if name in leaves}
        part = {name: x if _kind(named, x) == kind else None for name, x in part.items()}
        if any(x is not None for x in part.values()):
            found[site] = part
    return found


def _kind(named: str, factor: Any) -> str:
    return "across_experts" if named == "experts" and not is_split(factor) else named


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Factors `[L, N, (E,) R, width]` by site, and each slot's scale. An empty slot is all zeros.

    Within a step: of this shard's slots and widths; factors of one expert and scales, of all slots of its expert axis.
    Where there are other methods than LoRA's kin, `kinds` says of each site how a slot's factors are derived: by which
    of the `recipes`, counted from 1, by none (0), or that its adapter does not have the site (-1).
    """

    factors: FactorTree
    scales: Float[Array, "N"]
    kinds: dict[str, Int32[Array, "N"]] | None = None
    recipes: tuple[Recipe, ...] = field(default=(), metadata={"static": True})

    @property
    def slots(self) -> int:
        """Slots, within a step those of a shard."""
        return self.scales.shape[0] // size(EXPERT)

    @property
    def memory(self) -> tuple[int, int] | None:
        """States of a memory and their rank; None where no adapter has one."""
        return memory_of(self.factors)

    def scanned(self, sites: range, kind: str) -> FactorTree:
        """Nothing: a resident bank is read in place."""
        return {}

    def at(self, layer: Int32[Array, ""], kind: str, scanned: FactorTree) -> Adapters:
        """One layer's factors by site: the whole bank with layers and slots folded, and where the layer begins."""
        scales = self.scales if kind == "experts" else of_own(self.scales)
        offset = layer * scales.shape[0]

        def fold(x: Array | None) -> Array | None:
            return None if x is None else x.reshape(-1, *x.shape[2:])

        return {
            site: _as_read({name: fold(x) for name, x in f.items()}, scales, offset)
            for site, f in _of_kind(self.factors, kind).items()
        }

    def memory_at(self, layer: Int32[Array, ""], scanned: FactorTree) -> MemoryFactors | None:
        """One layer's memories, as `at`; None where no adapter has one."""
        if MEMORY not in self.factors:
            return None
        scales = of_own(self.scales)
        held = {name: x.reshape(-1, *x.shape[2:]) for name, x in self.factors[MEMORY].items()}
        return MemoryFactors(**held, scales=scales, offset=layer * scales.shape[0])

    def take(self, slots: Int32[Array, "A"]) -> "ActiveSlots":
        """A compact copy of these slots; a slot past the end repeats the last one, for padding."""
        own, with_experts = parted(self.factors)
        everyone = group_slots(slots, self.slots)
        factors = joined(take_slots(own, slots), take_slots(with_experts, everyone))
        scales, kinds = jax.tree.map(lambda x: jnp.take(x, everyone, mode="clip"), (self.scales, self.kinds))
        return ActiveSlots(factors, scales, kinds, self.recipes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActiveSlots:
    """The slots of one training step, `[L, A, (E,) R, width]`; token slots are indices into these."""

    factors: FactorTree
    scales: Float[Array, "A"]
    kinds: dict[str, Int32[Array, "A"]] | None = None
    recipes: tuple[Recipe, ...] = field(default=(), metadata={"static": True})

    @property
    def slots(self) -> int:
        """Active slots of a shard."""
        return self.scales.shape[0] // size(EXPERT)

    @property
    def memory(self) -> tuple[int, int] | None:
        """States of a memory and their rank; None where no adapter has one."""
        return memory_of(self.factors)

    def scanned(self, sites: range, kind: str) -> FactorTree:
        """These layers' factors, to be sliced by the scan."""
        return jax.tree.map(lambda x: x[sites.start : sites.stop], _of_kind(self.factors, kind))

    def at(self, layer: Int32[Array, ""], kind: str, scanned: FactorTree) -> Adapters:
        """One layer's factors by site, as the scan sliced them."""
        zero, scales = jnp.zeros((), jnp.int32), self.scales if kind == "experts" else of_own(self.scales)
        return {site: _as_read(f, scales, zero) for site, f in scanned.items()}

    def memory_at(self, layer: Int32[Array, ""], scanned: FactorTree) -> MemoryFactors | None:
        """One layer's memories, as the scan sliced them."""
        if MEMORY not in scanned:
            return None
        return MemoryFactors(**scanned[MEMORY], scales=of_own(self.scales), offset=jnp.zeros((), jnp.int32))


def _as_read(factors: dict[str, Any], scales: Array, offset: Array) -> Factors:
    """One site's factors as kernels read them; gains are rows of one."""
    gains = factors.get("gains")
    return Factors(factors["a"], factors["b"], scales, offset, None if gains is None else gains[..., 0, :])


def rederived(base: Base, bank: Bank, slots: Int32[Array, "A"]) -> Bank:
    """The bank, with these slots' factors made anew of their leaves; of a shard. Past the end, nothing."""
    if bank.kinds is None:
        return bank
    own, with_experts = parted(derived(base, bank.take(slots)))
    held, held_with_experts = parted(bank.factors)
    everyone = group_slots(slots, bank.slots)
    return replace(
        bank, factors=joined(put_slots(held, slots, own), put_slots(held_with_experts, everyone, with_experts))
    )


def padded_rank(rank: int) -> int:
    """The rank a bank is allocated at."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def empty_bank(config: ModelConfig, spec: AdapterSpec, slots: int, specs: Sequence[AdapterSpec] = ()) -> Bank:
    """A bank of zeros for adapters of LoRA up to `spec`'s rank on its targets, in its expert form, and for those of
    other methods that are as one of `specs`. Float32.
    """
    plain = tuple(target for target in spec.targets if target != MEMORY)
    highest = max(map(rank_in_bank, (*specs, spec)))
    factors = replace(spec, method="lora", init="default", tied=False, targets=plain, rank=padded_rank(highest))
    shapes = leaf_shapes(config, factors) if plain else {}
    for other in specs:
        if missing := set(adapted_sites(config, other)) - {*shapes, MEMORY}:
            told = f"the bank has no site '{min(missing)}', which adapters of method '{other.method}' have"
            raise PefxError(f"{told}; it has {', '.join(shapes)}", "bad_adapter")
        for site, leaves in leaf_shapes(config, replace(other, rank=padded_rank(other.rank))).items():
            room = shapes.setdefault(site, {})
            for name, shape in leaves.items():
                room[name] = tuple(map(max, room.get(name, shape), shape))
            if any(name in GAINED for name in leaves):
                shapes[site]["gains"] = (shapes[site]["b"][0], 1, shapes[site]["b"][-1])
    factors = {
        site: {name: jnp.zeros((s[0], slots, *s[1:]), jnp.float32) for name, s in leaves.items()}
        for site, leaves in shapes.items()
    }
    ranks = sorted({other.rank for other in specs if MEMORY in other.targets})
    if len(ranks) > 1:
        told = f"memories in one bank must have one rank, got {' and '.join(map(str, ranks))}"
        raise PefxError(told, "wrong_rank")
    # A bank of plain factors has nothing to tell apart: what an adapter lacks is zero, and stays it.
    kinds = {site: jnp.zeros(slots, jnp.int32) for site in shapes} if any(map(needs_room, specs)) else None
    return Bank(factors, jnp.zeros(slots, jnp.float32), kinds, recipes_of(specs))


def bank_spec(specs: list[AdapterSpec]) -> AdapterSpec:
    """The smallest spec whose bank holds all of these: highest rank, all targets, the wider expert form."""
    targets = tuple(site for site in SITES if any(site in s.targets for s in specs))
    unknown = {t for s in specs for t in s.targets} - set(SITES)
    if unknown:
        raise PefxError(f"adapter target '{min(unknown)}' is not known; choose from {', '.join(SITES)}", "bad_adapter")
    forms = {s.expert_form for s in specs if any(SITES[t].kind == "experts" for t in s.targets)}
    if len(forms) > 1:
        raise PefxError(
            "adapters of one bank must agree on expert_form, got per_expert and shared_hidden", "bad_adapter"
        )
    form = forms.pop() if forms else "per_expert"
    rank = max(map(rank_in_bank, specs))
    return replace(specs[0], method="lora", rank=rank, init="default", tied=False, targets=targets, expert_form=form)


def load_adapter(bank: Bank, slot: int, adapter: Adapter, spec: AdapterSpec, base: Base | None = None) -> Bank:
    """The bank with `adapter` in `slot`: one call for the whole adapter, the old bank donated. `base` is needed where
    its factors are derived.

    Raises PefxError (kind "bad_adapter") if a target, shape, rank or method does not fit; then nothing has changed.
    """
    _check_slot(bank, slot)
    recipe = recipe_of(spec)
    if recipe is None:
        return _put(bank, slot, padded_factors(bank.factors, adapter, spec), scale(spec), _kinds(bank, spec, 0))
    if recipe not in bank.recipes:
        told = f"the bank has no room for method '{spec.method}' of rank {spec.rank} and {spec.units} units"
        raise PefxError(told, "bad_adapter")
    if base is None or not set(adapter) <= set(base.shared.get(recipe.name, ())):
        raise ValueError(f"{recipe} is made with what a base shares at {sorted(adapter)}, and there is none")
    kinds = _kinds(bank, spec, bank.recipes.index(recipe) + 1)
    bank = _put(bank, slot, padded_factors(bank.factors, adapter, spec), scale(spec), kinds)
    return _rederive(base, bank, share(of_base, np.full(2, slot, np.int32)))


def unload(bank: Bank, slot: int) -> Bank:
    """The bank with `slot` zeroed. Raises PefxError if there is no such slot."""
    _check_slot(bank, slot)
    zeros = jax.tree.map(lambda x: np.zeros((x.shape[0], *x.shape[2:]), np.float32), bank.factors)
    return _put(bank, slot, zeros, 0.0, dict.fromkeys(bank.factors, 0))


def _kinds(bank: Bank, spec: AdapterSpec, kind: int) -> dict[str, int]:
    """How the factors of an adapter are derived at each site."""
    return {site: kind if site in spec.targets else -1 for site in bank.factors}


def _put(bank: Bank, slot: int, factors: FactorTree, slot_scale: float, kinds: dict[str, int]) -> Bank:
    held = None if bank.kinds is None else {site: np.full(1, kinds[site], np.int32) for site in bank.kinds}
    part = Bank(jax.tree.map(lambda x: x[:, None], factors), np.full(1, slot_scale, np.float32), held, bank.recipes)
    return write_slot(bank, share(of_base, np.int32(slot)), share(of_one, part))


def read_adapter(bank: Bank, slot: int, config: ModelConfig, spec: AdapterSpec) -> Adapter:
    """The adapter in `slot`, on the host, at its own rank and targets. Float32.

    Raises PefxError if the bank has no such slot, or no room for an adapter of this spec.
    """
    _check_slot(bank, slot)
    shapes = leaf_shapes(config, spec)
    for site in shapes:
        if site not in bank.factors:
            raise PefxError(f"the bank has no site '{site}'; it has {', '.join(bank.factors)}", "bad_adapter")
    factors = {site: bank.factors[site] for site in shapes}
    rows = fetch(read_slot(factors, share(of_base, np.int32(slot))))
    return {
        site: {
            name: np.array(rows[site][name][: shape[0], 0, ..., : shape[-2], : shape[-1]], np.float32)
            for name, shape in leaves.items()
        }
        for site, leaves in shapes.items()
    }


def _check_slot(bank: Bank, slot: int) -> None:
    """Out of range, an index would be clamped: the wrong adapter."""
    if not 0 <= slot < bank.slots:
        raise PefxError(f"slot {slot} is not in a bank of {bank.slots}", "bad_adapter")


def _rederive_shard(base: Base, bank: Bank, slots: Int32[Array, "A"]) -> Bank:
    """`rederived` on one shard, of slots counted over all; others' are past the end."""
    local = slots - (index(DATA) * bank.scales.shape[0] + index(EXPERT) * bank.slots)
    return rederived(base, bank, jnp.where((local >= 0) & (local < bank.slots), local, bank.slots))


@partial(jit, donate_argnums=1)
def _rederive(base: Base, bank: Bank, slots: Int32[Array, "A"]) -> Bank:
    """These slots' factors, counted over all shards, made anew of their leaves."""
    return sharded(_rederive_shard, (of_base, by_slot, of_base), lambda specs: specs[1])(base, bank, slots)
