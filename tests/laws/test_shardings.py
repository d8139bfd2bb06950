"""Laws 2 and 3 across meshes: what differs in `data` and `expert` alone has the same bits, `model` rounds otherwise."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.adapters.sharded_slots import by_slot
from pefx.batch import KVPool
from pefx.config import AdapterSpec, ExpertForm, MeshConfig
from pefx.mesh import by_page, of_base, on_mesh, place
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import Sizes, Span, span_rows
from pefx.steps import ServeState, TrainHyper, serve_step, train_step
from tests.laws.world import CONTEXT, MODEL, PAGE, TILE, Item, serve_plan, train_batch

# Two layers of experts: with one, the compiler makes the same of a step for a mesh as of one for a device.
CONFIG = replace(MODEL, layers=3, dense_layers=(0,))
# One of each kind: widths divided behind a product and before it, inside experts, and the vocabulary.
TARGETS = ("q_proj", "o_proj", "up_proj", "experts.up_proj", "experts.down_proj", "unembed")
USERS, LENGTH = 8, 20  # a page a user
SERVED = 0  # the text that is served before training, and that the first step learns from
STEPS = ((SERVED, False), (1, True), (2, True))  # text, and whether the gradient is applied now
SAME = [MeshConfig(2, 1, 1), MeshConfig(1, 4, 1)]
ALONE = MeshConfig(1, 1, 1)
SPLIT, BOTH = MeshConfig(1, 1, 2), MeshConfig(2, 2, 2)


@dataclass(frozen=True)
class Found:
    """Of each user: all that training changed, the first step's gradient, and log-probabilities and routes."""

    state: list[list[np.ndarray]]
    gradient: list[list[np.ndarray]]
    trained: list[np.ndarray]
    served: list[np.ndarray]
    routes: list[np.ndarray]


def _text(user: int, text: int) -> np.ndarray:
    rng = np.random.default_rng(100 * text + user)
    return rng.integers(0, CONFIG.vocab_size, LENGTH).astype(np.int32)


_tokens = _text


def beside(parts):
    """What the shards have, one behind the other."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _bank(mesh: MeshConfig, form: ExpertForm) -> tuple[Bank, list[int]]:
    """All users' adapters, dealt out to the shards, in a bank with a free slot on each; and their slots."""
    spec, own = AdapterSpec(rank=3, targets=TARGETS, expert_form=form), USERS // mesh.rows
    bank = place(by_slot, empty_bank(CONFIG, bank_spec([spec]), mesh.rows * (own + 1)))
    places = [user % mesh.rows * (own + 1) + user // mesh.rows for user in range(USERS)]
    for user, slot in enumerate(places):
        adapter, rng = init_adapter(CONFIG, spec, user), np.random.default_rng(user)
        for pair in adapter.values():
            pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.1
        bank = load_adapter(bank, slot, adapter, spec)
    return bank, places


def _train(mesh: MeshConfig, base: Base, bank: Bank, places: list[int]):
    """What is left of each user after the steps, its first gradient, and its log-probabilities in the first step."""
    own, opt = USERS // mesh.rows, place(by_slot, init_opt(bank))
    order = [shard + mesh.rows * i for shard in range(mesh.rows) for i in range(own)]
    each = np.asarray(order, np.float32)
    hyper = TrainHyper(
        slots=np.tile(np.arange(own, dtype=np.int32), mesh.rows),
        learning_rate=1e-2 + 1e-3 * each,
        weight_decay=0.1 + 0 * each,
        clip=0.05 + 0.1 * each,  # some are clipped
        beta1=0.9 + 0 * each,
        beta2=0.95 + 0 * each,
        epsilon=1e-8 + 0 * each,
        apply=np.ones(USERS, bool),
    )
    gradient, first = [], np.zeros(0)
    for text, apply in STEPS:
        shards = [[Item(_tokens(order[s * own + i], text), i) for i in range(own)] for s in range(mesh.rows)]
        batch = beside([train_batch(items, max(own, 2) * PAGE, max(own, 2)) for items in shards])
        bank, opt, metrics = train_step(base, bank, opt, batch, replace(hyper, apply=np.full(USERS, apply)))
        if text == SERVED:
            first = np.asarray(metrics.logprobs).reshape(mesh.rows, -1)
            gradient = _by_user(opt.gradient, places)
    trained = [first[u % mesh.rows, u // mesh.rows * PAGE :][: LENGTH - 1] for u in range(USERS)]
    numbers = [opt.count[None], opt.weight[None]]
    return _by_user((bank.factors, opt.mu, opt.nu, opt.gradient, numbers), places), gradient, trained


def _by_user(tree, places: list[int]) -> list[list[np.ndarray]]:
    leaves = jax.tree.leaves(jax.device_get(tree))
    return [[x[:, slot] for x in leaves] for slot in places]


def _serve(mesh: MeshConfig, base: Base, bank):
    """A prefill of all but one token of each user, then a decode."""
    own = USERS // mesh.rows
    state = place(by_page, ServeState(KVPool.zeros(CONFIG, mesh.rows * own, PAGE)))
    served, routes = [[] for _ in range(USERS)], [[] for _ in range(USERS)]
    for begin, end in ((0, LENGTH - 1), (LENGTH - 1, LENGTH)):
        # One shape for both.
        sizes = Sizes(max(own, 2), own * -(-LENGTH // TILE), max(own, 2), CONTEXT // PAGE, PAGE, TILE)
        plans, places = [], []
        for shard in range(mesh.rows):
            users = [shard + mesh.rows * i for i in range(own)]
            spans = [Span(_tokens(user, SERVED)[begin:end], begin, i, [i]) for i, user in enumerate(users)]
            plans.append(
                serve_plan(spans, [np.append(_tokens(u, SERVED), 0)[begin + 1 : end + 1] for u in users], sizes)
            )
            places += [(u, shard * sizes.tokens + row) for u, row in zip(users, span_rows(spans, sizes), strict=True)]
        state, drawn, ids = serve_step(base, bank, state, beside(plans))
        for user, row in places:
            served[user].append(np.asarray(drawn.logprobs)[row : row + end - begin])
            routes[user].append(np.asarray(ids)[:, row : row + end - begin])
    return [np.concatenate(x) for x in served], [np.concatenate(x, 1) for x in routes]


@cache
def _found(mesh: MeshConfig, form: ExpertForm = "per_expert") -> Found:
    with on_mesh(mesh):
        base = place(of_base, Base(CONFIG, nnx.Rngs(7)))
        bank, places = _bank(mesh, form)
        served, routes = _serve(mesh, base, bank)
        return Found(*_train(mesh, base, bank, places), served, routes)


def _bits(found: Found):
    return [x.view(np.uint32) for user in found.state for x in user], found.trained, found.served, found.routes


def _assert_same_bits(one: Found, other: Found) -> None:
    for a, b in zip(jax.tree.leaves(_bits(one)), jax.tree.leaves(_bits(other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mesh", [pytest.param(SAME[0], marks=pytest.mark.slow), SAME[1]], ids=str)
def test_data_and_expert_shards_change_no_bit(mesh: MeshConfig) -> None:
    _assert_same_bits(_found(ALONE), _found(mesh))


@pytest.mark.slow
def test_factors_that_experts_share_change_no_bit() -> None:
    _assert_same_bits(_found(ALONE, "shared_hidden"), _found(SAME[1], "shared_hidden"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [SPLIT, BOTH], ids=str)
def test_model_shards_take_the_same_routes_and_round_otherwise(mesh: MeshConfig) -> None:
    alone, split = _found(ALONE), _found(mesh)
    for user in range(USERS):
        np.testing.assert_array_equal(alone.routes[user], split.routes[user])
        np.testing.assert_allclose(alone.served[user], split.served[user], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.trained[user], split.trained[user], rtol=0, atol=1e-5)
        for a, b in zip(alone.gradient[user], split.gradient[user], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6 * np.abs(a).max() + 1e-6)


@pytest.mark.slow
def test_shards_of_every_axis_together_have_the_bits_of_model_shards_alone() -> None:
    _assert_same_bits(_found(SPLIT), _found(BOTH))


@pytest.mark.parametrize("mesh", [SAME[1], pytest.param(BOTH, marks=pytest.mark.slow)], ids=str)
def test_training_and_serving_agree_to_the_bit_on_a_mesh(mesh: MeshConfig) -> None:
    found = _found(mesh)
    for trained, served in zip(found.trained, found.served, strict=True):
        np.testing.assert_array_equal(trained, served[: LENGTH - 1])
        assert len(np.unique(trained)) == LENGTH - 1


@pytest.mark.slow
def test_alone_or_among_others_a_user_ends_in_the_same_bits_on_a_mesh() -> None:
    """Law 3: the others learn from other texts, and this user's numbers stay."""
    found = _found(BOTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.laws.test_shardings._tokens", lambda user, step: _text(user, step if user == 5 else 7))
        with on_mesh(BOTH):
            base = place(of_base, Base(CONFIG, nnx.Rngs(7)))
            state, _, trained = _train(BOTH, base, *_bank(BOTH, "per_expert"))
    for a, b in zip(found.state[5], state[5], strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
    np.testing.assert_array_equal(found.trained[5], trained[5])
    assert any(np.any(a != b) for a, b in zip(found.state[4], state[4], strict=True))
