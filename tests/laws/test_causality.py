"""Law 9, by gradient: no output depends on a later token or on another sequence; padding is inert."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.model import forward, unembed
from tests.laws.world import PAGE, Item, make_bank, make_base, random_sequences, train_batch

TOKENS = 256


def _outputs(base, bank, batch, nudge):
    """Logits, with `nudge [T, D]` added to what each row's token embeds to: every row reads its own embedding row."""
    rows = jnp.arange(TOKENS, dtype=jnp.int32)
    table = jnp.take(base.embed[...], batch.tokens, axis=0) + nudge
    hidden, _, _ = forward(
        _with_embedding(base, table), bank, dataclasses.replace(batch, tokens=rows), KVPool.zeros(base.config, 8, PAGE)
    )
    return unembed(base, bank, hidden, batch.by_slot())


def _with_embedding(base, table):
    leaves, tree = jax.tree.flatten(base)
    places = [i for i, x in enumerate(leaves) if x is base.embed[...]]
    assert len(places) == 1
    leaves[places[0]] = table
    return jax.tree.unflatten(tree, leaves)


@jit
def _influence(base, bank, batch, row, direction):
    """How much each row's embedding moves row `row`'s logits (a random functional of them), `[T]`."""

    def value(nudge):
        return jnp.sum(_outputs(base, bank, batch, nudge)[row] * direction)

    return jnp.max(jnp.abs(jax.grad(value)(jnp.zeros((TOKENS, base.config.hidden)))), axis=1)


@pytest.mark.parametrize("with_bank", [False, True])
def test_no_output_depends_on_what_it_must_not(with_bank):
    base, bank = make_base(), make_bank(3) if with_bank else None
    items = [Item(s.tokens, i - 1 if with_bank else -1) for i, s in enumerate(random_sequences(3, 1, 5, longest=60))]
    batch = train_batch(items, TOKENS, 4).tokens
    sequence, position = np.asarray(batch.sequences), np.asarray(batch.positions)
    rng = np.random.default_rng(0)
    for row in (0, 17, 59, 64, int(np.flatnonzero(position >= 0)[-1])):
        direction = rng.normal(size=base.config.vocab_size).astype(np.float32)
        reach = np.asarray(_influence(base, bank, batch, jnp.int32(row), direction))
        allowed = (position >= 0) & (sequence == sequence[row]) & (position <= position[row])
        assert np.all(reach[~allowed] == 0)
        assert np.all(reach[allowed] > 0)
