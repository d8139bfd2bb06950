"""Law 4: slot -1, a fresh zero-delta adapter, and no bank at all give the base's logits bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.methods.table import init_adapter
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.model import forward, unembed
from tests.laws.world import MODEL, PAGE, Item, make_bank, make_base, random_sequences, spec_of, train_batch

TOKENS = 512


@jit
def _logits(base, bank, batch):
    pool = KVPool.zeros(base.config, TOKENS // PAGE, PAGE)
    hidden, _, _ = forward(base, bank, batch, pool)
    return unembed(base, bank, hidden, batch.by_slot())


def _sequences(slot: int) -> list[Item]:
    return [Item(s.tokens, slot) for s in random_sequences(5, 1, seed=3, longest=100)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["per_expert", "shared_hidden"])
def test_absent_and_fresh_adapters_are_the_base(precision, form):
    base = make_base(precision)
    fresh = {slot: init_adapter(MODEL, spec_of(slot, form), slot) for slot in range(3)}
    bank = make_bank(4, fresh, form)
    bare = train_batch(_sequences(-1), TOKENS, 8).tokens
    live = np.asarray(bare.positions) >= 0
    expected = np.asarray(_logits(base, None, bare))[live]
    absent = np.asarray(_logits(base, bank, bare))[live]
    assert absent.tobytes() == expected.tobytes()
    for slot in (0, 2, 3):  # two fresh adapters and an empty slot
        zero = np.asarray(_logits(base, bank, train_batch(_sequences(slot), TOKENS, 8).tokens))[live]
        assert zero.tobytes() == expected.tobytes()


def test_a_trained_neighbour_does_not_reach_the_base():
    base, bank = make_base(), make_bank(6)
    alone = train_batch(_sequences(-1), TOKENS, 8).tokens
    mixed_items = [Item(s.tokens, -1 if i % 2 == 0 else i) for i, s in enumerate(_sequences(-1))]
    mixed = train_batch(mixed_items, TOKENS, 8).tokens
    expected, got = np.asarray(_logits(base, None, alone)), np.asarray(_logits(base, bank, mixed))
    bare = (np.asarray(mixed.slots) == -1) & (np.asarray(mixed.positions) >= 0)
    assert got[bare].tobytes() == expected[bare].tobytes()
    adapted = np.asarray(mixed.slots) >= 0
    assert jnp.abs(got[adapted] - expected[adapted]).max() > 1e-2
