"""Adapters of one method at other places of one bank: each as it would be in a bank of its own (laws 3 and 4)."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import rate_of
from pefx.adapters.shared import fresh_adapter, with_shared
from pefx.config import AdapterSpec
from pefx.optim import init_opt
from pefx.steps import score, train_step
from tests.laws.world import MODEL, PAGE, Item, hyper_of, make_base, random_sequences, rows_of, train_batch

PLACES = ("q_proj", "o_proj", "down_proj")
SPECS = {
    "dora": AdapterSpec("dora", 4, targets=PLACES),
    "ia3": AdapterSpec("ia3", targets=PLACES),
    "lora_xs": AdapterSpec("lora_xs", 4, targets=PLACES),
    "vera": AdapterSpec("vera", 4, targets=PLACES),
    "olora": AdapterSpec(rank=4, init="olora", targets=PLACES),
}
TEXTS = [item.tokens for item in random_sequences(4, 1, seed=3, longest=PAGE)]


def trained(specs: list[AdapterSpec], base):
    """Log-probabilities of fresh adapters, and their factors after two steps of each on the same text."""
    bank = empty_bank(MODEL, bank_spec(specs), len(specs) + 1, specs)
    for slot, spec in enumerate(specs):
        bank = load_adapter(bank, slot, fresh_adapter(base, spec, 1), spec, base)
    count = len(specs)
    items = [Item(tokens, slot) for slot in range(count) for tokens in TEXTS[:2]]
    batch = train_batch(items, 2 * PAGE * max(count, 2), 2 * count)
    before = rows_of(items, np.asarray(score(base, bank, batch)))
    opt, leaves = init_opt(bank, accumulate=False), {leaf for own in bank.factors.values() for leaf in own}
    rates = {leaf: np.asarray([rate_of(spec, leaf) for spec in specs], np.float32) for leaf in sorted(leaves)}
    hyper = hyper_of(range(count), learning_rate=np.full(count, 1e-2, np.float32), rates=rates)
    for _ in range(2):
        bank, opt, metrics = train_step(base, bank, opt, batch, hyper)
    after = rows_of(items, np.asarray(score(base, bank, batch)))
    return before, after, np.asarray(metrics.gradient_norm), jax.device_get(bank.factors)


@pytest.mark.parametrize("name", SPECS)
def test_who_has_fewer_sites_starts_and_learns_as_in_a_bank_of_its_own(name):
    whole, part = SPECS[name], replace(SPECS[name], targets=("q_proj",))
    base = with_shared(make_base(), [whole])
    bare = Item(TEXTS[0], -1)
    start = rows_of([bare], np.asarray(score(base, None, train_batch([bare], 2 * PAGE, 2))))[0]
    before, after, norms, factors = trained([whole, part], base)
    for own in (before[0], before[2]):  # the first text, of either
        np.testing.assert_allclose(own, start, rtol=0, atol=1e-5)
    alone_before, alone_after, alone_norms, _ = trained([part], base)
    assert all(np.array_equal(x, y) for x, y in zip(before[2:], alone_before, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(after[2:], alone_after, strict=True))
    assert norms[1] == alone_norms[0]
    assert not np.array_equal(after[2], before[2])
    for site in ("o_proj", "down_proj"):
        for leaf, x in factors[site].items():
            assert (x[:, 1] == (1 if leaf == "gains" else 0)).all(), (site, leaf)
