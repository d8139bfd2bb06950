"""The bank: N adapters stacked on a slot axis, behind the layer axis. Ranks differ by zero padding.

A `Bank` is resident and read in place; `ActiveSlots` is a compact copy of the slots a training step updates, scanned
layer by layer so that its gradient is as small as it is.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from kernels.factors import Factors
from kernels.fresh import fresh
from pefx.adapters.methods import Adapter, scale
from pefx.adapters.sites import SITES, factor_shapes
from pefx.compiler import jit
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.layers.linear import Adapters
from pefx.mesh import by_slot

FactorTree = dict[str, dict[str, Array]]
RANK_MULTIPLE = 8  # a rank of one row would take other bits, and does not compile for TPUs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Factors `[L, N, (E,) R, width]` by site, and each slot's scale. An empty slot is all zeros."""

    factors: FactorTree
    scales: Float[Array, "N"]

    @property
    def slots(self) -> int:
        return self.scales.shape[0]

    def scanned(self, sites: range, kind: str) -> FactorTree:
        """Nothing: a resident bank is read in place."""
        return {}

    def at(self, layer: Int32[Array, ""], kind: str, scanned: FactorTree) -> Adapters:
        """One layer's factors by site: the whole bank with layers and slots folded, and where the layer begins."""
        offset = layer * self.slots

        def fold(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        return {
            site: Factors(fold(f["a"]), fold(f["b"]), self.scales, offset)
            for site, f in self.factors.items()
            if SITES[site].kind == kind
        }

    def take(self, slots: Int32[Array, "A"]) -> "ActiveSlots":
        """A compact copy of these slots; a slot past the end repeats the last one, for padding."""
        return ActiveSlots(take_slots(self.factors, slots), jnp.take(self.scales, slots, mode="clip"))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActiveSlots:
    """The slots of one training step, `[L, A, (E,) R, width]`; token slots are indices into these."""

    factors: FactorTree
    scales: Float[Array, "A"]

    @property
    def slots(self) -> int:
        return self.scales.shape[0]

    def scanned(self, sites: range, kind: str) -> FactorTree:
        """These layers' factors, to be sliced by the scan."""
        mine = {site: f for site, f in self.factors.items() if SITES[site].kind == kind}
        return jax.tree.map(lambda x: x[sites.start : sites.stop], mine)

    def at(self, layer: Int32[Array, ""], kind: str, scanned: FactorTree) -> Adapters:
        """One layer's factors by site, as the scan sliced them."""
        zero = jnp.zeros((), jnp.int32)
        return {site: Factors(f["a"], f["b"], self.scales, zero) for site, f in scanned.items()}


def slot_at(tree: Any, slot: Int32[Array, ""]) -> Any:
    """The part of one slot in every array, its axis kept; past the end, the last slot's."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1, by_slot(x)), tree)


def put_slot(tree: Any, slot: Int32[Array, ""], part: Any) -> Any:
    """Replace the part of one slot in every array."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, slot, by_slot(x)), tree, part)


def take_slots(tree: Any, slots: Int32[Array, "A"]) -> Any:
    """A copy of these slots of every array; past the end, of the last. A slot at a time: a gather is slower on CPU."""

    def one(i, out):
        return put_slot(out, i, slot_at(tree, slots[i]))

    def room(x: Array) -> Array:
        axis = by_slot(x)
        return fresh((*x.shape[:axis], slots.shape[0], *x.shape[axis + 1 :]), x)

    return jax.lax.fori_loop(0, slots.shape[0], one, jax.tree.map(room, tree))


def put_slots(tree: Any, slots: Int32[Array, "A"], parts: Any) -> Any:
    """Replace these slots of every array, in place where the tree is donated; past the end, nothing."""

    def one(i, tree):
        part, count = slot_at(parts, i), jax.tree.leaves(tree)[0]
        live = slots[i] < count.shape[by_slot(count)]
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
    return _write_slot(bank, np.int32(slot), padded_factors(bank, adapter, spec), np.float32(scale(spec)))


def unload(bank: Bank, slot: int) -> Bank:
    """The bank with `slot` zeroed. Raises PefxError if there is no such slot."""
    _check_slot(bank, slot)
    zeros = jax.tree.map(lambda x: np.zeros((x.shape[0], *x.shape[2:]), np.float32), bank.factors)
    return _write_slot(bank, np.int32(slot), zeros, np.float32(0.0))


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
    rows = jax.device_get({site: jax.tree.map(lambda x: x[:, slot], bank.factors[site]) for site in shapes})
    return {
        site: {name: np.array(x[..., : spec.rank, :], np.float32) for name, x in pair.items()}
        for site, pair in rows.items()
    }


def _check_slot(bank: Bank, slot: int) -> None:
    """Out of range, an index would be clamped: the wrong adapter."""
    if not 0 <= slot < bank.slots:
        raise PefxError(f"slot {slot} is not in a bank of {bank.slots}", "bad_adapter")


def _write(bank: Bank, slot: Int32[Array, ""], factors: FactorTree, slot_scale: Float[Array, ""]) -> Bank:
    put = jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, slot, 1), bank.factors, factors)
    return Bank(put, bank.scales.at[slot].set(slot_scale))


_write_slot = jit(_write, donate_argnums=0)
