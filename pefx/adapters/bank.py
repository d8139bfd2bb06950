"""The bank: N adapters stacked on a slot axis, behind the layer axis. Ranks differ by zero padding.

A `Bank` is resident and read in place; `ActiveSlots` is a compact copy of the slots a training step updates, scanned
layer by layer so that its gradient is as small as it is.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from kernels.factors import Factors
from kernels.fresh import fresh
from pefx.adapters.methods import Adapter, scale
from pefx.adapters.sites import SITES, factor_shapes, width_axis
from pefx.batch import Array
from pefx.collectives import group_slots, index, of_own, size
from pefx.compiler import jit
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.layers.linear import Adapters
from pefx.mesh import DATA, EXPERT, fetch, of_base, sharded, share

FactorTree = dict[str, dict[str, Any]]  # by site and factor; None where a tree was taken apart
RANK_MULTIPLE = 8  # a rank of one row would take other bits, and does not compile for TPUs


def by_slot(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Logical axes of a bank, and of what stands beside it slot by slot: factors `[L, N, (E,) R, width]`, numbers [N].

    A factor of one expert lies with the expert; its slots are those of all shards that send rows to it.
    """
    if x.ndim == 1:
        return ("group_slots",)
    site, factor = (key.key for key in path[-2:])
    if _split(x):
        return ("layers", "group_slots", "experts", "rank", width_axis(site, factor))
    return ("layers", "slots", "rank", width_axis(site, factor))


def _split(factor: Any) -> bool:
    """Whether each expert has its own."""
    return factor.ndim == 5


def parted(tree: Any) -> tuple[Any, Any]:
    """What of a tree of factors lies with the slots' rows, and what with the experts; None in place of the rest."""
    return jax.tree.map(lambda x: None if _split(x) else x, tree), jax.tree.map(
        lambda x: x if _split(x) else None, tree
    )


def joined(own: Any, with_experts: Any) -> Any:
    """The tree that `parted` took apart."""
    return jax.tree.map(lambda x, y: y if x is None else x, own, with_experts, is_leaf=lambda x: x is None)


def _of_kind(factors: FactorTree, kind: str) -> dict[str, dict[str, Any]]:
    """By site, the factors that a layer of this kind has; "across_experts": those that the experts of a layer share."""
    found = {}
    for site, pair in factors.items():
        named = SITES[site].kind
        part = {name: x if _kind(named, x) == kind else None for name, x in pair.items()}
        if any(x is not None for x in part.values()):
            found[site] = part
    return found


def _kind(named: str, factor: Any) -> str:
    return "across_experts" if named == "experts" and not _split(factor) else named


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Factors `[L, N, (E,) R, width]` by site, and each slot's scale. An empty slot is all zeros.

    Within a step: of this shard's slots and widths; factors of one expert and scales, of all slots of its expert axis.
    """

    factors: FactorTree
    scales: Float[Array, "N"]

    @property
    def slots(self) -> int:
        """Slots, within a step those of a shard."""
        return self.scales.shape[0] // size(EXPERT)

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
            site: Factors(fold(f["a"]), fold(f["b"]), scales, offset)
            for site, f in _of_kind(self.factors, kind).items()
        }

    def take(self, slots: Int32[Array, "A"]) -> "ActiveSlots":
        """A compact copy of these slots; a slot past the end repeats the last one, for padding."""
        own, with_experts = parted(self.factors)
        everyone = group_slots(slots, self.slots)
        factors = joined(take_slots(own, slots), take_slots(with_experts, everyone))
        return ActiveSlots(factors, jnp.take(self.scales, everyone, mode="clip"))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActiveSlots:
    """The slots of one training step, `[L, A, (E,) R, width]`; token slots are indices into these."""

    factors: FactorTree
    scales: Float[Array, "A"]

    @property
    def slots(self) -> int:
        """Active slots of a shard."""
        return self.scales.shape[0] // size(EXPERT)

    def scanned(self, sites: range, kind: str) -> FactorTree:
        """These layers' factors, to be sliced by the scan."""
        return jax.tree.map(lambda x: x[sites.start : sites.stop], _of_kind(self.factors, kind))

    def at(self, layer: Int32[Array, ""], kind: str, scanned: FactorTree) -> Adapters:
        """One layer's factors by site, as the scan sliced them."""
        zero, scales = jnp.zeros((), jnp.int32), self.scales if kind == "experts" else of_own(self.scales)
        return {site: Factors(f["a"], f["b"], scales, zero) for site, f in scanned.items()}


def _slot_axis(x: Any) -> int:
    """Slots are behind the layers, or first in an array of one number a slot."""
    return min(x.ndim - 1, 1)


def slot_at(tree: Any, slot: Int32[Array, ""]) -> Any:
    """The part of one slot in every array, its axis kept; past the end, the last slot's."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1, _slot_axis(x)), tree)


def put_slot(tree: Any, slot: Int32[Array, ""], part: Any) -> Any:
    """Replace the part of one slot in every array."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, slot, _slot_axis(x)), tree, part)


def take_slots(tree: Any, slots: Int32[Array, "A"]) -> Any:
    """A copy of these slots of every array; past the end, of the last. A slot at a time: a gather is slower on CPU."""

    def one(i, out):
        return put_slot(out, i, slot_at(tree, slots[i]))

    def room(x: Array) -> Array:
        axis = _slot_axis(x)
        return fresh((*x.shape[:axis], slots.shape[0], *x.shape[axis + 1 :]), x)

    return jax.lax.fori_loop(0, slots.shape[0], one, jax.tree.map(room, tree))


def put_slots(tree: Any, slots: Int32[Array, "A"], parts: Any) -> Any:
    """Replace these slots of every array, in place where the tree is donated; past the end, nothing."""

    def one(i, tree):
        part, count = slot_at(parts, i), jax.tree.leaves(tree)[0]
        live = slots[i] < count.shape[_slot_axis(count)]
        kept = jax.tree.map(lambda x, y: jnp.where(live, x, y), part, slot_at(tree, slots[i]))
        return put_slot(tree, slots[i], kept)

    return jax.lax.fori_loop(0, slots.shape[0], one, tree)


def padded_rank(rank: int) -> int:
    """The rank a bank is allocated at."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def empty_bank(config: ModelConfig, spec: AdapterSpec, slots: int) -> Bank:
    """A bank of zeros for adapters up to `spec`'s rank on its targets, in its expert form. Float32."""
    shapes = factor_shapes(config, replace(spec, rank=padded_rank(spec.rank)))
    factors = {
        site: {name: jnp.zeros((s[0], slots, *s[1:]), jnp.float32) for name, s in pair.items()}
        for site, pair in shapes.items()
    }
    return Bank(factors, jnp.zeros(slots, jnp.float32))


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
    return replace(
        specs[0], rank=max(s.rank for s in specs), targets=targets, expert_form=forms.pop() if forms else "per_expert"
    )


def load_adapter(bank: Bank, slot: int, adapter: Adapter, spec: AdapterSpec) -> Bank:
    """The bank with `adapter` in `slot`: one call for the whole adapter, the old bank donated.

    Raises PefxError (kind "bad_adapter") if a target, shape or rank does not fit; then nothing has changed.
    """
    _check_slot(bank, slot)
    return _put(bank, slot, padded_factors(bank, adapter, spec), scale(spec))


def unload(bank: Bank, slot: int) -> Bank:
    """The bank with `slot` zeroed. Raises PefxError if there is no such slot."""
    _check_slot(bank, slot)
    zeros = jax.tree.map(lambda x: np.zeros((x.shape[0], *x.shape[2:]), np.float32), bank.factors)
    return _put(bank, slot, zeros, 0.0)


def _put(bank: Bank, slot: int, factors: dict[str, dict[str, np.ndarray]], slot_scale: float) -> Bank:
    one = Bank(jax.tree.map(lambda x: x[:, None], factors), np.full(1, slot_scale, np.float32))
    return _write_slot(bank, share(of_base, np.int32(slot)), share(of_one, one))


def padded_factors(bank: Bank, adapter: Adapter, spec: AdapterSpec) -> dict[str, dict[str, np.ndarray]]:
    """The adapter in the bank's shapes: checked, rank padded with zeros, missing sites zero."""
    foreign = sorted(set(adapter) - set(bank.factors))
    if foreign:
        raise PefxError(f"the bank has no site '{foreign[0]}'; it has {', '.join(bank.factors)}", "bad_adapter")
    for site in bank.factors:
        if (site in spec.targets) != (site in adapter):
            wrong = "lacks" if site in spec.targets else "has"
            raise PefxError(
                f"the adapter {wrong} site '{site}', its spec says {', '.join(spec.targets)}", "bad_adapter"
            )
        if site in adapter and set(adapter[site]) != {"a", "b"}:
            raise PefxError(f"site '{site}' has factors {sorted(adapter[site])}, not a and b", "bad_adapter")
    out = {}
    for site, pair in bank.factors.items():
        out[site] = {}
        for name, room in pair.items():
            shape = (room.shape[0], *room.shape[2:])
            if site not in adapter:
                out[site][name] = np.zeros(shape, np.float32)
                continue
            value = np.asarray(adapter[site][name])
            rank = value.shape[-2] if value.ndim >= 2 else -1
            if rank != spec.rank:
                raise PefxError(f"{site}.{name} has rank {rank}, its spec says {spec.rank}", "bad_adapter")
            if rank > shape[-2]:
                raise PefxError(f"{site}.{name} has rank {rank}, above the bank's {shape[-2]}", "bad_adapter")
            if (*value.shape[:-2], value.shape[-1]) != (*shape[:-2], shape[-1]):
                raise PefxError(
                    f"{site}.{name} has shape {value.shape}; this bank needs {(*shape[:-2], rank, shape[-1])}",
                    "bad_adapter",
                )
            pad = [(0, 0)] * (value.ndim - 2) + [(0, shape[-2] - rank), (0, 0)]
            out[site][name] = np.pad(value.astype(np.float32), pad)
    return out


def read_adapter(bank: Bank, slot: int, config: ModelConfig, spec: AdapterSpec) -> Adapter:
    """The adapter in `slot`, on the host, at its own rank and targets. Float32.

    Raises PefxError if the bank has no such slot, or no room for an adapter of this spec.
    """
    _check_slot(bank, slot)
    shapes = factor_shapes(config, spec)
    for site in shapes:
        if site not in bank.factors:
            raise PefxError(f"the bank has no site '{site}'; it has {', '.join(bank.factors)}", "bad_adapter")
    factors = {site: bank.factors[site] for site in shapes}
    rows = fetch(_read_slot(factors, share(of_base, np.int32(slot))))
    return {
        site: {name: np.array(x[:, 0, ..., : spec.rank, :], np.float32) for name, x in pair.items()}
        for site, pair in rows.items()
    }


def _check_slot(bank: Bank, slot: int) -> None:
    """Out of range, an index would be clamped: the wrong adapter."""
    if not 0 <= slot < bank.slots:
        raise PefxError(f"slot {slot} is not in a bank of {bank.slots}", "bad_adapter")


def of_one(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Logical axes of what goes into one slot: as a bank's, but the slot axis, of size one, is not divided."""
    return tuple(None if name in ("slots", "group_slots") else name for name in by_slot(path, x))


def _write(bank: Bank, slot: Int32[Array, ""], one: Bank) -> Bank:
    """Put `one`, a bank of one slot, into `slot` of all shards' slots."""
    return sharded(_write_shard, (by_slot, of_base, of_one), lambda specs: specs[0])(bank, slot, one)


def _write_shard(bank: Bank, slot: Int32[Array, ""], one: Bank) -> Bank:
    """`_write` on one shard; where the slot is another's, nothing changes."""
    slots, first = bank.scales.shape[0], index(DATA) * bank.scales.shape[0]

    def put(tree: Any, count: int, first: Array, new: Any) -> Any:
        local = slot - first
        live, at = (local >= 0) & (local < count), jnp.clip(local, 0, count - 1)
        part = jax.tree.map(lambda x, y: jnp.where(live, x, y), new, slot_at(tree, at))
        return put_slot(tree, at, part)

    (own, with_experts), (new, new_with_experts) = parted(bank.factors), parted(one.factors)
    own = put(own, bank.slots, first + index(EXPERT) * bank.slots, new)
    with_experts = put(with_experts, slots, first, new_with_experts)
    return Bank(joined(own, with_experts), put(bank.scales, slots, first, one.scales))


_write_slot = jit(_write, donate_argnums=0)
_read_slot = jit(slot_at)
