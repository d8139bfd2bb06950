"""Laws 2 to 5 for every method of adaptation, all of them in one batch: each is as it would be among its own kind."""

from dataclasses import replace
from functools import cache
from typing import get_args

import jax
import numpy as np
import pytest

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter, read_adapter
from pefx.adapters.methods.recipe import rank_in_bank
from pefx.adapters.methods.table import METHODS, Adapter, rate_of
from pefx.adapters.shared import fresh_adapter, with_shared
from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from pefx.config.shapes import Method
from pefx.optim import init_opt
from pefx.steps import base_gradient, score, train_step
from tests.laws.world import (
    MODEL,
    PAGE,
    Item,
    hyper_of,
    make_base,
    random_sequences,
    rows_of,
    serve_logprobs,
    train_batch,
)

STARTS = ("mica", "olora_tail", "pissa")
TIED = ("tied",)  # TinyLoRA whose sites all share one vector
MEMORIES = ("delta_mem", "delta_state")  # laws of their own: `tests/laws/test_memory.py`
NAMES = (*(name for name in get_args(Method) if name not in MEMORIES), *STARTS, *TIED)
# One of each kind: a step of all sites takes three times as long to compile.
PLACES = ("q_proj", "o_proj", "down_proj", "experts.gate_proj", "experts.down_proj", "unembed")
SHARE, STEPS = 64, 3  # tokens of each adapter in a step
ROOM = bank_spec([AdapterSpec(rank=8, targets=PLACES)])


def spec_of(name: str) -> AdapterSpec:
    """A method, or LoRA from a start, at all of `PLACES` that it has a place at; ranks differ."""
    rank = 2 if name in ("tiny_lora", *TIED) else 3 + NAMES.index(name) % 8
    if name in TIED:
        return AdapterSpec("tiny_lora", rank, targets=PLACES, units=5, tied="all")
    spec = AdapterSpec(rank=rank, init=name) if name in STARTS else AdapterSpec(method=name, rank=rank, units=3)  # type: ignore[arg-type]
    return replace(spec, targets=tuple(site for site in PLACES if METHODS[spec.method].refuses(SITES[site]) is None))


@cache
def base():
    return with_shared(make_base(), [spec_of(name) for name in NAMES])


def fresh(name: str, seed: int) -> Adapter:
    """As it starts: from its own first texts, where that is the method's way."""

    def along(sites) -> dict[str, np.ndarray]:
        items = [Item(tokens, -1) for tokens in texts(name)]
        found = base_gradient(base(), train_batch(items, SHARE, 2), sites=tuple(sites))
        return {site: np.asarray(x) for site, x in found.items()}

    return fresh_adapter(base(), spec_of(name), seed, along)


def changed(name: str) -> Adapter:
    """An adapter none of whose leaves is as it began."""
    rng = np.random.default_rng(NAMES.index(name))

    def moved(x: np.ndarray) -> np.ndarray:
        return x + 0.1 * rng.normal(size=x.shape).astype(np.float32)

    return {site: {leaf: moved(x) for leaf, x in leaves.items()} for site, leaves in fresh(name, 1).items()}


def bank_of(adapters: dict[str, Adapter], room: tuple[str, ...] = NAMES) -> Bank:
    """A bank with room for methods, these adapters in its slots 1, 2, ..."""
    bank = empty_bank(MODEL, ROOM, len(NAMES) + 2, [spec_of(name) for name in room])
    for slot, (name, adapter) in enumerate(adapters.items(), 1):
        bank = load_adapter(bank, slot, adapter, spec_of(name), base())
    return bank


def texts(name: str, step: int = 0) -> list[np.ndarray]:
    return [item.tokens for item in random_sequences(2, 1, seed=100 * step + NAMES.index(name), longest=PAGE)]


def scored(bank: Bank, slots: dict[str, int]) -> dict[str, list[np.ndarray]]:
    """Log-probabilities of each method's own texts, through the forward of training."""
    items = [Item(tokens, slot) for name, slot in slots.items() for tokens in texts(name)]
    found = rows_of(items, np.asarray(score(base(), bank, train_batch(items, SHARE * len(NAMES), 2 * len(NAMES)))))
    return {name: found[2 * i : 2 * i + 2] for i, name in enumerate(slots)}


@cache
def together():
    bank, slots = bank_of({name: changed(name) for name in NAMES}), {name: i for i, name in enumerate(NAMES, 1)}
    return bank, slots, scored(bank, slots)


def same(left, right) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(left, right, strict=True))


# In a bank with room for all, whose programs all methods share, and in one with room for this method only.
ALONE = [(name, NAMES) for name in NAMES] + [
    pytest.param(name, (name,), marks=() if name in ("lora", "dora") else pytest.mark.slow) for name in NAMES
]
IDS = [f"{name}-{room}" for room in ("all", "own") for name in NAMES]


@pytest.mark.parametrize(("name", "room"), ALONE, ids=IDS)
def test_one_batch_of_all_methods_is_each_among_its_own(name, room):
    alone = scored(bank_of({name: changed(name)}, room), {name: 1})[name]
    bare = scored(bank_of({}, room), {name: -1})[name]
    assert same(alone, together()[2][name])
    assert max(np.abs(a - b).max() for a, b in zip(alone, bare, strict=True)) > 1e-3


def test_all_methods_decode_and_prefill_as_they_train():
    bank, slots, found = together()
    items = [Item(tokens, slot) for name, slot in slots.items() for tokens in texts(name)]
    assert same([row for rows in found.values() for row in rows], serve_logprobs(base(), bank, items, (1, 7), 64))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_adapter_is_the_base(name):
    found, bare = scored(bank_of({name: fresh(name, 5)}), {name: 1})[name], scored(bank_of({}), {name: -1})[name]
    if rank_in_bank(spec_of(name)) == spec_of(name).rank:
        assert same(found, bare)
    else:  # what is added and taken away again is rounded in between
        for left, right in zip(found, bare, strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_loaded(name):
    bank, slots, _ = together()
    found, want = read_adapter(bank, slots[name], MODEL, spec_of(name)), changed(name)
    assert {site: set(leaves) for site, leaves in found.items()} == {site: set(leaves) for site, leaves in want.items()}
    assert all(same(found[site].values(), [want[site][leaf] for leaf in found[site]]) for site in want)


def trained(names: tuple[str, ...], room: tuple[str, ...] = NAMES):
    """Bank and optimizer state after some steps of these methods' adapters, in slots 1, 2, ..."""
    bank = bank_of({name: changed(name) for name in names}, room)
    opt, count = init_opt(bank, accumulate=False), len(names)
    leaves = {leaf for site in bank.factors.values() for leaf in site}
    numbers = np.arange(count, dtype=np.float32) if count > 1 else np.asarray([NAMES.index(names[0])], np.float32)
    for step in range(STEPS):
        items = [Item(tokens, index) for index, name in enumerate(names) for tokens in texts(name, step)]
        rate = np.float32(1e-2) + np.float32(1e-3) * numbers
        rates = {leaf: np.asarray([rate_of(spec_of(n), leaf) for n in names], np.float32) for leaf in sorted(leaves)}
        hyper = hyper_of(range(1, count + 1), learning_rate=rate, rates=rates)
        bank, opt, metrics = train_step(base(), bank, opt, train_batch(items, SHARE * count, 2 * count), hyper)
    return jax.device_get((bank, opt, metrics.gradient_norm))


@cache
def mixed():
    return trained(NAMES)


@pytest.mark.parametrize(("name", "room"), ALONE, ids=IDS)
def test_training_alone_gives_the_same_bits_as_among_all_methods(name, room):
    (bank, opt, norm), (all_banks, all_opts, norms) = trained((name,), room), mixed()
    place = NAMES.index(name)
    start = bank_of({name: changed(name)}, room)
    for site, leaves in bank.factors.items():
        for leaf, x in leaves.items():
            own, other = (tree[site][leaf] for tree in (bank.factors, all_banks.factors))
            part = other[:, place + 1, ..., : x.shape[-2], : x.shape[-1]]
            assert same([own[:, 1]], [part]), (site, leaf)
            if rate_of(spec_of(name), leaf) and site in changed(name):
                assert not same([own[:, 1]], [np.asarray(start.factors[site][leaf])[:, 1]]), (site, leaf)
                for moment, others in ((opt.mu, all_opts.mu), (opt.nu, all_opts.nu)):
                    part = others[site][leaf][:, place + 1, ..., : x.shape[-2], : x.shape[-1]]
                    assert same([moment[site][leaf][:, 1]], [part]), (site, leaf)
    assert norm[0] == norms[place]
    assert opt.count[1] == STEPS
