"""The bank: what is loaded comes back, neighbours do not move, what does not fit is refused before a change."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.adapters import bank as bank_module
from pefx.adapters.bank import (
    bank_spec,
    empty_bank,
    load_adapter,
    padded_rank,
    read_adapter,
    unload,
)
from pefx.adapters.methods.table import init_adapter, leaf_shapes, scale
from pefx.adapters.shared import with_shared
from pefx.adapters.sites import MATRICES, SITES
from pefx.adapters.slots import put_slots, take_slots
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.model_small import MODEL, make_base, random_adapter

SLOTS = 3
ALL = AdapterSpec(rank=16, targets=MATRICES)


def spec_of(rank: int, **changes) -> AdapterSpec:
    return replace(ALL, rank=rank, **changes)


def bits(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def same(left, right) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and bits(left) == bits(right)


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 16)), min_size=1, max_size=6))
def test_a_bank_holds_what_was_last_loaded_in_each_slot(script):
    """Rank 0 stands for unloading."""
    bank, held = empty_bank(MODEL, ALL, SLOTS), {}
    for step, (slot, rank) in enumerate(script):
        if rank == 0:
            bank = unload(bank, slot)
            held.pop(slot, None)
            continue
        spec = spec_of(rank, method="rslora" if rank % 2 else "lora", alpha=float(rank + 1))
        held[slot] = (random_adapter(MODEL, spec, step), spec)
        bank = load_adapter(bank, slot, *held[slot])
    for slot in range(SLOTS):
        if slot in held:
            adapter, spec = held[slot]
            assert same(read_adapter(bank, slot, MODEL, spec), adapter)
            assert float(bank.scales[slot]) == np.float32(scale(spec))
            for site, pair in bank.factors.items():
                for name, x in pair.items():
                    assert not np.asarray(x[:, slot, ..., spec.rank :, :]).any(), (site, name)
        else:
            assert not any(np.asarray(x[:, slot]).any() for x in jax.tree.leaves(bank.factors))
            assert float(bank.scales[slot]) == 0


@pytest.mark.parametrize(("rank", "padded"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_ranks_are_allocated_in_whole_multiples(rank, padded):
    assert padded_rank(rank) == padded
    shapes = leaf_shapes(MODEL, spec_of(padded))
    bank = empty_bank(MODEL, spec_of(rank), 2)
    for site, pair in shapes.items():
        for name, shape in pair.items():
            assert bank.factors[site][name].shape == (shape[0], 2, *shape[1:])
    assert bank.slots == 2


def test_loading_is_one_compiled_call_whatever_the_slot_and_rank_and_the_old_bank_is_given_up():
    bank = empty_bank(MODEL, ALL, SLOTS)
    bank = load_adapter(bank, 0, random_adapter(MODEL, spec_of(2), 0), spec_of(2))
    compiled = bank_module.write_slot.jitted()._cache_size()
    for slot, rank in ((1, 3), (2, 16), (0, 7)):
        old, bank = bank, load_adapter(bank, slot, random_adapter(MODEL, spec_of(rank), slot), spec_of(rank))
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    unload(bank, 1)
    assert bank_module.write_slot.jitted()._cache_size() == compiled


def test_loading_is_one_call_of_the_device_however_many_sites(monkeypatch):
    calls, write = [], bank_module.write_slot
    monkeypatch.setattr(bank_module, "write_slot", lambda *arguments: calls.append(1) or write(*arguments))
    bank = empty_bank(MODEL, ALL, SLOTS)
    for count in (1, len(SITES)):
        spec = spec_of(2, targets=MATRICES[:count])
        bank = load_adapter(bank, 0, random_adapter(MODEL, spec, 0), spec)
    assert len(calls) == 2


def test_an_adapter_on_fewer_sites_leaves_the_others_zero():
    spec = AdapterSpec(rank=2, targets=("v_proj",))
    adapter = random_adapter(MODEL, spec, 0)
    bank = load_adapter(empty_bank(MODEL, ALL, SLOTS), 1, random_adapter(MODEL, spec_of(4), 1), spec_of(4))
    bank = load_adapter(bank, 1, adapter, spec)
    assert same(read_adapter(bank, 1, MODEL, spec), adapter)
    others = [pair for site, pair in bank.factors.items() if site != "v_proj"]
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(others))


def test_shared_hidden_factors_go_round_and_do_not_fit_a_split_bank():
    spec = spec_of(4, expert_form="shared_hidden")
    adapter = random_adapter(MODEL, spec, 0)
    bank = load_adapter(empty_bank(MODEL, spec, SLOTS), 2, adapter, spec)
    assert bank.factors["experts.gate_proj"]["a"].shape == (2, SLOTS, 8, 33)
    assert same(read_adapter(bank, 2, MODEL, spec), adapter)
    with pytest.raises(PefxError, match=r"experts.gate_proj.a has shape \(2, 4, 33\); this bank needs \(2, 5, 4, 33\)"):
        load_adapter(empty_bank(MODEL, ALL, SLOTS), 0, adapter, spec)
    split = random_adapter(MODEL, spec_of(4), 0)
    with pytest.raises(PefxError, match=r"this bank needs \(2, 4, 33\)"):
        load_adapter(bank, 0, split, spec_of(4))


def without(adapter, site):
    return {name: pair for name, pair in adapter.items() if name != site}


GOOD = random_adapter(MODEL, spec_of(4), 0)
Q = GOOD["q_proj"]
REFUSED = {
    "slot past the end": (SLOTS, GOOD, spec_of(4), "slot 3 is not in a bank of 3"),
    "slot of the base": (-1, GOOD, spec_of(4), "slot -1 is not in a bank of 3"),
    "rank unlike its spec": (0, GOOD, spec_of(5), "_proj.a has rank 4, its spec says 5"),
    "rank above the bank": (0, random_adapter(MODEL, spec_of(17), 0), spec_of(17), "rank 17, above the bank's 16"),
    "another base": (
        0, {**GOOD, "q_proj": {"a": Q["a"], "b": Q["b"][..., 1:]}}, spec_of(4),
        r"q_proj.b has shape \(3, 4, 17\); this bank needs \(3, 4, 18\)",
    ),
    "too few layers": (
        0, {**GOOD, "q_proj": {"a": Q["a"][:2], "b": Q["b"]}}, spec_of(4), r"q_proj.a has shape \(2, 4, 33\)",
    ),
    "a flat factor": (0, {**GOOD, "q_proj": {"a": Q["a"].ravel(), "b": Q["b"]}}, spec_of(4), "q_proj.a has rank -1"),
    "an unknown site": (0, {**GOOD, "gate": Q}, spec_of(4), "the bank has no site 'gate'; it has down_proj"),
    "a missing site": (0, without(GOOD, "v_proj"), spec_of(4), "the adapter lacks site 'v_proj'"),
    "a site not in its spec": (
        0, GOOD, spec_of(4, targets=("q_proj",)), "the adapter has site 'down_proj', its spec says q_proj",
    ),
    "half a site": (0, {**GOOD, "q_proj": {"a": Q["a"]}}, spec_of(4), "site 'q_proj' has factors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_changes(case):
    slot, adapter, spec, message = REFUSED[case]
    bank = load_adapter(empty_bank(MODEL, ALL, SLOTS), SLOTS - 1, GOOD, spec_of(4))
    before = bits(bank)
    with pytest.raises(PefxError, match=message) as caught:
        load_adapter(bank, slot, adapter, spec)
    assert caught.value.kind == "bad_adapter"
    assert bits(bank) == before


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_there_is_nothing_to_read_or_unload_past_the_end(slot):
    bank = empty_bank(MODEL, ALL, SLOTS)
    with pytest.raises(PefxError, match=f"slot {slot} is not in a bank of 3"):
        read_adapter(bank, slot, MODEL, spec_of(4))
    with pytest.raises(PefxError, match=f"slot {slot} is not in a bank of 3"):
        unload(bank, slot)


def test_reading_a_site_the_bank_lacks_is_refused():
    bank = empty_bank(MODEL, AdapterSpec(rank=4, targets=("q_proj",)), 1)
    with pytest.raises(PefxError, match="the bank has no site 'k_proj'"):
        read_adapter(bank, 0, MODEL, AdapterSpec(rank=4, targets=("q_proj", "k_proj")))


def test_a_banks_spec_holds_all_of_its_adapters():
    dense = AdapterSpec(rank=3, targets=("v_proj", "q_proj"), expert_form="shared_hidden")
    sparse = AdapterSpec(rank=9, targets=("experts.up_proj",))
    made = bank_spec([dense, sparse])
    assert (made.rank, made.targets, made.expert_form) == (9, ("q_proj", "v_proj", "experts.up_proj"), "per_expert")
    assert bank_spec([dense]).expert_form == "per_expert"
    shared = replace(sparse, expert_form="shared_hidden")
    assert bank_spec([shared, dense]).expert_form == "shared_hidden"
    with pytest.raises(PefxError, match="must agree on expert_form, got per_expert and shared_hidden"):
        bank_spec([sparse, shared])
    with pytest.raises(PefxError, match="adapter target 'w_proj' is not known"):
        bank_spec([AdapterSpec(targets=("w_proj",))])


def test_compact_slots_are_taken_and_put_back():
    bank = empty_bank(MODEL, AdapterSpec(rank=2, targets=("q_proj",)), 4)
    factors = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), bank.factors)
    bank = replace(bank, factors=factors, scales=jnp.arange(4, dtype=jnp.float32))
    slots = jnp.array([2, 0, 4], jnp.int32)  # 4 pads
    active = bank.take(slots)
    assert active.slots == 3
    np.testing.assert_array_equal(active.scales, [2, 0, 3])
    np.testing.assert_array_equal(active.factors["q_proj"]["a"][:, 0], factors["q_proj"]["a"][:, 2])
    after = put_slots(factors, slots, jax.tree.map(lambda x: -x - 1, active.factors))
    for old, new in zip(jax.tree.leaves(factors), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[:, jnp.array([1, 3])], old[:, jnp.array([1, 3])])
        np.testing.assert_array_equal(new[:, jnp.array([0, 2])], -old[:, jnp.array([0, 2])] - 1)
    assert same(put_slots(factors, slots, take_slots(factors, slots)), factors)


def test_a_bank_and_its_active_slots_show_a_layer_the_same_factors():
    bank = empty_bank(MODEL, ALL, 2)
    factors = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), bank.factors)
    bank = replace(bank, factors=factors)
    active = bank.take(jnp.array([0, 1], jnp.int32))
    assert bank.scanned(range(3), "attention") == {}
    for kind, layers in (("attention", 3), ("dense", 1), ("experts", 2), ("unembed", 1)):
        sliced = active.scanned(range(layers), kind)
        for layer in range(layers):
            own = jax.tree.map(lambda x, layer=layer: x[layer], sliced)
            resident, compact = (b.at(jnp.asarray(layer, jnp.int32), kind, own) for b in (bank, active))
            assert set(resident) == set(compact) == {s for s in bank.factors if SITES[s].kind == kind}
            for site in resident:
                for slot in range(2):
                    left, right = resident[site], compact[site]
                    np.testing.assert_array_equal(left.a[left.offset + slot], right.a[right.offset + slot])
                    np.testing.assert_array_equal(left.b[left.offset + slot], right.b[right.offset + slot])


@pytest.mark.parametrize("method", ["vera", "ia3"])
def test_a_site_that_a_bank_has_no_room_for_is_refused_not_left_out(method):
    here, there = (AdapterSpec(method=method, rank=4, targets=sites) for sites in (("q_proj",), ("q_proj", "o_proj")))
    base = with_shared(make_base(MODEL), [here])
    bank = empty_bank(MODEL, replace(ALL, targets=("q_proj", "o_proj")), 2, [here])
    with pytest.raises((PefxError, ValueError), match="'o_proj'"):
        load_adapter(bank, 0, init_adapter(MODEL, there, 0), there, base)
