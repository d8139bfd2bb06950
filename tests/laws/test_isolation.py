"""Law 3: training an adapter in a mixed batch gives the same bits as training it alone; idle slots do not change."""

from functools import cache

import jax
import numpy as np
import pytest

from pefx.optim import init_opt
from pefx.steps import TrainHyper, train_step
from tests.laws.world import PAGE, Item, make_bank, make_base, random_sequences, train_batch

STEPS, USERS, SHARE = 20, 16, 64  # tokens of each user in a step


def _hyper(slots: list[int], users: list[int], step: int) -> TrainHyper:
    """Every user has its own rate, decay and clip; odd users accumulate over two steps."""
    own = np.asarray(users)

    def column(first: float, each: float) -> np.ndarray:
        return (first + each * own).astype(np.float32)

    return TrainHyper(
        slots=np.asarray(slots, np.int32),
        learning_rate=column(1e-2, 1e-3) / np.float32(1 + step),
        weight_decay=column(0.1, 0.02),
        clip=column(0.05, 0.1),
        beta1=column(0.9, 0.0),
        beta2=column(0.95, 0.001),
        epsilon=column(1e-8, 0.0),
        apply=np.asarray([user % 2 == 0 or step % 2 == 1 for user in users]),
    )


def _texts(user: int, step: int) -> list[np.ndarray]:
    """What user `user` learns from in step `step`: one or two sequences that fill its share of pages."""
    found = random_sequences(2, 1, seed=1000 * user + step, longest=PAGE)
    return [item.tokens for item in found][: 1 + user % 2]


def _train(slots: list[int], users: list[int], bank_slots: int):
    """Train `users` in `slots` of a bank of 18; every share is a user's own rows. Returns bank and optimizer state."""
    base = make_base()
    bank = make_bank(bank_slots)
    opt = init_opt(bank)
    for step in range(STEPS):
        items = []
        for index, user in enumerate(users):
            texts = _texts(user, step)
            items += [Item(tokens, index) for tokens in texts]
            items += [Item(np.zeros(PAGE, np.int32), -1)] * (SHARE // PAGE - len(texts))
        tokens = SHARE * len(users)
        batch = train_batch(items, tokens, tokens // PAGE)
        # The filler rows of the bare base are in nobody's loss.
        bank, opt, _ = train_step(base, bank, opt, batch, _hyper(slots, users, step))
    return jax.device_get((bank, opt))


@cache
def _mixed():
    return _train(list(range(1, USERS + 1)), list(range(1, USERS + 1)), USERS + 2)


def _slot(state, slot: int):
    """All that belongs to one slot: factors, moments, accumulated gradient, weight, count."""
    bank, opt = state
    trees = jax.tree.map(lambda x: x[:, slot], (bank.factors, opt.mu, opt.nu, opt.gradient))
    return [*jax.tree.leaves(trees), bank.scales[slot], opt.weight[slot], opt.count[slot]]


def _same_bits(left, right) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("user", [1, 2, 9, 16])
def test_training_alone_gives_the_same_bits_as_among_sixteen(user):
    # The slot must hold the same start: slot `user` of every bank holds the adapter of seed `user`.
    alone = _train([user], [user], USERS + 2)
    assert _same_bits(_slot(alone, user), _slot(_mixed(), user))
    start = (make_bank(USERS + 2), init_opt(make_bank(USERS + 2)))
    assert not _same_bits(_slot(jax.device_get(start), user), _slot(alone, user))


def test_idle_slots_do_not_change_by_a_bit():
    bank = make_bank(USERS + 2)
    start = jax.device_get((bank, init_opt(bank)))
    for slot in (0, USERS + 1):
        assert _same_bits(_slot(start, slot), _slot(_mixed(), slot))


def test_counts_are_each_slots_own():
    counts = _mixed()[1].count
    expected = [STEPS if user % 2 == 0 else STEPS // 2 for user in range(1, USERS + 1)]
    assert counts.tolist() == [0, *expected, 0]
