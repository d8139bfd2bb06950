"""Laws 2 and 3 of losses of the table: beside all others a policy ends in the bits that it would have alone."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.adapters.sharded_slots import by_slot
from pefx.config import AdapterSpec, MeshConfig
from pefx.losses.policy import PolicyNumbers, PolicyTerms
from pefx.losses.rows import LOSSES, NUMBER
from pefx.mesh import of_base, on_mesh, place
from pefx.model import Base
from pefx.optim import init_opt
from pefx.steps import TrainHyper, score, train_step
from tests.laws import world
from tests.laws.world import PAGE, Item, train_batch

NAMES = tuple(LOSSES)
USERS, STEPS, SHARE = len(NAMES), 4, 2 * PAGE  # two sequences of each user in a step, a page each
# Another order in the batch, among the active slots and in the bank.
ELSEWHERE = tuple(np.random.default_rng(1).permutation(USERS).tolist())
MODEL = replace(world.MODEL, layers=1, dense_layers=())
SPEC = AdapterSpec(rank=3, targets=("q_proj", "experts.up_proj", "unembed"))
UNIFORM = -np.log(MODEL.vocab_size)  # about what a token costs a random base


def _numbers(users: list[int]) -> PolicyNumbers:
    """Every user has the loss of its number; every third one is anchored at the base, every fourth seeks entropy."""
    rows = [LOSSES[NAMES[user]] for user in users]
    own = np.asarray(users)

    def column(values) -> np.ndarray:
        return np.asarray(values, np.float32)

    return PolicyNumbers(
        np.asarray([NUMBER[NAMES[user]] for user in users], np.int32),
        clip_low=column([row.clip_low for row in rows]),
        clip_high=column([row.clip_high for row in rows]),
        beta=column([row.beta for row in rows]),
        kl=column(np.where(own % 3 == 0, 0.1, 0.0)),
        entropy=column(np.where(own % 4 == 1, 0.05, 0.0)),
        denominator=column(30.0 + own),
    )


def _hyper(slots: list[int], users: list[int], step: int) -> TrainHyper:
    """Every user has its own rate and clip; odd users accumulate over two steps."""
    own = np.asarray(users, np.float32)
    return TrainHyper(
        slots=np.asarray(slots, np.int32),
        learning_rate=1e-2 + 1e-3 * own,
        weight_decay=0.1 + 0 * own,
        clip=0.05 + 0.1 * own,
        beta1=0.9 + 0 * own,
        beta2=0.95 + 0 * own,
        epsilon=1e-8 + 0 * own,
        apply=np.asarray([user % 2 == 0 or step % 2 == 1 for user in users]),
        policy=_numbers(users),
    )


def _batch(users: list[int], step: int):
    """Each user's two sequences and what is known of their tokens, drawn from user and step alone."""
    items, columns, partners = [], {"weights": [], "advantages": [], "old": [], "base": []}, []
    for index, user in enumerate(users):
        rng = np.random.default_rng(1000 * user + step)
        pair = LOSSES[NAMES[user]].over == "pair"
        for side in (0, 1):
            tokens = rng.integers(0, MODEL.vocab_size, rng.integers(5, PAGE + 1)).astype(np.int32)
            items.append(Item(tokens, index))
            partners.append(2 * index + 1 - side if pair else -1)
            columns["weights"].append(np.where(rng.random(PAGE) < 0.3, 0, 0.5 + rng.random(PAGE)))
            columns["advantages"].append(np.full(PAGE, 1.0 - 2 * side) if pair else rng.normal(size=PAGE))
            columns["old"].append(UNIFORM + 0.5 * rng.normal(size=PAGE))
            columns["base"].append(UNIFORM + 0.5 * rng.normal(size=PAGE))
    batch = train_batch(items, SHARE * len(users), 2 * len(users))
    rows = {name: np.concatenate(parts).astype(np.float32) for name, parts in columns.items()}
    terms = PolicyTerms(rows["advantages"], rows["old"], rows["base"], np.asarray(partners, np.int32))
    return replace(batch, weights=batch.weights * rows["weights"], policy=terms)


def _bank(slots: list[int], users: list[int], count: int):
    bank = place(by_slot, empty_bank(MODEL, bank_spec([SPEC]), count))
    for slot, user in zip(slots, users, strict=True):
        adapter, rng = init_adapter(MODEL, SPEC, user), np.random.default_rng(user)
        for pair in adapter.values():
            pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.1
        bank = load_adapter(bank, slot, adapter, SPEC)
    return bank


@cache
def _base() -> Base:
    return Base(MODEL, nnx.Rngs(7))


def _train(users: tuple[int, ...], shards: int = 1):
    """Train users in slots of a bank with one more on each shard. By user: all of its state, and what its rows told."""
    own = len(users) // shards
    slots = [i % own + i // own * (own + 1) for i in range(len(users))]
    local = [i % own for i in range(len(users))]
    bank, base = _bank(slots, list(users), len(users) + shards), place(of_base, _base())
    opt, told = place(by_slot, init_opt(bank)), []
    for step in range(STEPS):
        parts = [_batch(list(users[s * own : (s + 1) * own]), step) for s in range(shards)]
        batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        bank, opt, metrics = train_step(base, bank, opt, batch, _hyper(local, list(users), step))
        told.append(np.stack([metrics.logprobs, metrics.entropies]))
    state = jax.device_get((bank.factors, opt.mu, opt.nu, opt.gradient, [opt.count[None], opt.weight[None]]))
    rows = np.stack(told)
    return {
        user: [*(x[:, slots[i]] for x in jax.tree.leaves(state)), rows[:, :, i * SHARE : (i + 1) * SHARE]]
        for i, user in enumerate(users)
    }


@cache
def _mixed(order: tuple[int, ...] = tuple(range(USERS)), shards: int = 1):
    if shards == 1:
        return _train(order)
    with on_mesh(MeshConfig(shards, 1, 1)):
        return _train(order, shards)


def _assert_same_bits(one, two) -> None:
    for a, b in zip(one, two, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_alone_or_beside_all_other_losses_a_policy_ends_in_the_same_bits(name):
    user = NAMES.index(name)
    alone = _train((user,))[user]
    _assert_same_bits(alone, _mixed()[user])
    assert all(np.isfinite(x).all() for x in alone)
    assert any(x.any() for x in alone[len(alone) // 2 :])


def test_no_bit_depends_on_the_place_in_the_batch():
    for user in range(USERS):
        _assert_same_bits(_mixed()[user], _mixed(ELSEWHERE)[user])


@pytest.mark.slow
def test_no_bit_depends_on_the_shard():
    for user in range(USERS):
        _assert_same_bits(_mixed()[user], _mixed(shards=2)[user])


@pytest.mark.slow
def test_a_divided_width_rounds_otherwise():
    """Entropies, and gradients through them, are of the whole vocabulary."""

    def step(mesh: MeshConfig):
        users = list(range(USERS))
        with on_mesh(mesh):
            bank, base = _bank(users, users, USERS), place(of_base, _base())
            hyper = replace(_hyper(users, users, 0), apply=np.zeros(USERS, bool))
            opt = place(by_slot, init_opt(bank))
            _, opt, metrics = train_step(base, bank, opt, _batch(users, 0), hyper)
            return jax.device_get((metrics.entropies, metrics.logprobs, metrics.loss, opt.gradient))

    for a, b in zip(*(jax.tree.leaves(step(MeshConfig(1, 1, n))) for n in (1, 2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_log_probabilities_of_the_step_are_those_of_score():
    """So the ratio of a policy's first update is exactly one."""
    users = list(range(USERS))
    batch = replace(_batch(users, 0), policy=None)
    scored = np.asarray(score(_base(), _bank(users, users, USERS + 1), batch)).reshape(USERS, SHARE)
    for user in users:
        assert scored[user].tobytes() == _mixed()[user][-1][0, 0].tobytes()
