"""Laws for adapters with memories: as the formulas say, and to the bit however sequences are cut and mixed."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter, read_adapter
from pefx.adapters.methods.table import Adapter
from pefx.adapters.shared import fresh_adapter
from pefx.config import AdapterSpec
from pefx.optim import init_opt
from pefx.packing import FOLLOW, FRESH
from pefx.steps import score, train_step
from pefx.training.remembering import flags
from tests.laws.world import MODEL, Item, hyper_of, make_base, rows_of, serve_logprobs, train_batch

TOKENS = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
MESSAGES = replace(TOKENS, writes="messages")
FOUR = replace(TOKENS, states=4)
LORA = AdapterSpec(rank=4, targets=("q_proj", "o_proj", "experts.up_proj"))
SPECS = {"tokens": TOKENS, "messages": MESSAGES, "four": FOUR, "lora": LORA}
MEMORIES = ("tokens", "messages", "four")
LENGTHS = (70, 45)  # of a history, and of what follows it


@cache
def base():
    return make_base()


def changed(name: str) -> Adapter:
    """An adapter none of whose numbers is as it began."""
    rng = np.random.default_rng(len(name))
    fresh = fresh_adapter(base(), SPECS[name], 1)
    return {
        s: {k: x + np.float32(0.2) * rng.normal(size=x.shape).astype(np.float32) for k, x in own.items()}
        for s, own in fresh.items()
    }


def bank_of(names: tuple[str, ...], room: tuple[str, ...] = tuple(SPECS)) -> Bank:
    bank = empty_bank(MODEL, bank_spec([SPECS[name] for name in room]), len(SPECS) + 1, [SPECS[name] for name in room])
    for slot, name in enumerate(names, 1):
        bank = load_adapter(bank, slot, changed(name), SPECS[name], base())
    return bank


def items_of(name: str, slot: int, seed: int = 0) -> list[Item]:
    """A history that is written, and what reads it and sees nothing else of it; of LoRA the second alone."""
    rng = np.random.default_rng([seed, *name.encode()])
    texts = [rng.integers(0, MODEL.vocab_size, n).astype(np.int32) for n in LENGTHS]
    if name not in MEMORIES:
        return [Item(texts[1], slot)]
    ends = np.arange(LENGTHS[0]) % 9 == 8
    before = flags(np.ones(LENGTHS[0], bool), SPECS[name].writes, FRESH, ends)
    return [Item(texts[0], slot, before), Item(texts[1], slot, flags(np.zeros(LENGTHS[1], bool), "tokens", FOLLOW))]


def scored(bank: Bank, items: list[Item]) -> list[np.ndarray]:
    batch = train_batch(items, 1024, 16, memory=True)
    return rows_of(items, np.asarray(score(base(), bank, batch)))


def same(left, right) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(left, right, strict=True))


@cache
def together() -> dict[str, list[np.ndarray]]:
    items = {name: items_of(name, slot) for slot, name in enumerate(SPECS, 1)}
    found = iter(scored(bank_of(tuple(SPECS)), [item for own in items.values() for item in own]))
    return {name: [next(found) for _ in own] for name, own in items.items()}


@pytest.mark.parametrize("name", SPECS)
def test_one_batch_of_all_is_each_among_its_own(name):
    assert same(scored(bank_of((name,)), items_of(name, 1)), together()[name])


@pytest.mark.parametrize("name", MEMORIES)
def test_what_follows_depends_on_a_history_that_it_does_not_see(name):
    history, after = items_of(name, 1)
    bank = bank_of((name,))
    other = replace(history, tokens=history.tokens[::-1].copy())
    assert not same(scored(bank, [history, after])[1:], scored(bank, [other, after])[1:])
    alone = replace(after, memory=flags(np.zeros(LENGTHS[1], bool), "tokens", FRESH))
    bare = replace(after, slot=-1, memory=None)
    assert same(scored(bank, [alone]), scored(bank, [bare]))  # an empty memory is the base, to the bit


@pytest.mark.parametrize("chunks", [(1,), (1, 7), (1, 7, 64)])
def test_memories_are_written_step_by_step_as_at_once(chunks):
    items = [
        replace(item, memory=written(name))
        for name in SPECS
        for item in items_of(name, 1 + list(SPECS).index(name))[:1]
    ]
    bank = bank_of(tuple(SPECS))
    assert same(scored(bank, items), serve_logprobs(base(), bank, items, chunks, 96))


def written(name: str) -> np.ndarray | None:
    return items_of(name, 0)[0].memory if name in MEMORIES else None


def trained(names: tuple[str, ...]):
    bank, count = bank_of(names), len(names)
    opt = init_opt(bank, accumulate=False)
    numbers = np.asarray([list(SPECS).index(name) for name in names], np.float32)
    for step in range(2):
        items = [item for slot, name in enumerate(names) for item in items_of(name, slot, step)]
        rate = np.float32(1e-2) + np.float32(1e-3) * numbers
        states = [0 if name == "lora" else SPECS[name].states / 4 for name in names]
        hyper = hyper_of(range(1, count + 1), learning_rate=rate, states=np.asarray(states, np.float32))
        batch = train_batch(items, 1024, 16, memory=True)
        batch = replace(batch, weights=np.where(np.arange(1024) % 5 > 0, batch.weights, 0).astype(np.float32))
        bank, opt, metrics = train_step(base(), bank, opt, batch, hyper)
    return jax.device_get((bank, opt, metrics.gradient_norm))


@cache
def mixed():
    return trained(tuple(SPECS))


@pytest.mark.parametrize("name", SPECS)
def test_training_alone_gives_the_same_bits_as_among_all(name):
    (bank, opt, norm), (all_banks, all_opts, norms) = trained((name,)), mixed()
    place, start = 1 + list(SPECS).index(name), bank_of((name,))
    for site, leaves in bank.factors.items():
        for leaf, x in leaves.items():
            assert same([x[:, 1]], [all_banks.factors[site][leaf][:, place]]), (site, leaf)
            assert same([opt.mu[site][leaf][:, 1]], [all_opts.mu[site][leaf][:, place]]), (site, leaf)
            if site in SPECS[name].targets:
                assert not same([x[:, 1]], [np.asarray(start.factors[site][leaf])[:, 1]]), (site, leaf)
    assert norm[0] == norms[place - 1]
    assert opt.count[1] == 2


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_read_is_what_was_loaded(name):
    found, want = read_adapter(bank_of((name,)), 1, MODEL, SPECS[name]), changed(name)
    assert all(same([x], [want[site][leaf]]) for site, own in found.items() for leaf, x in own.items())
