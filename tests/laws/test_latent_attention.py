"""Laws 2, 3 and 4 with latent attention and adapters on all of its projections; one dense layer, to compile sooner."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pefx.adapters.methods.table import init_adapter
from pefx.optim import init_opt
from pefx.steps import TrainHyper, score, train_step
from tests.laws import world
from tests.laws.world import Item, make_bank, make_base, random_sequences, rows_of, serve_logprobs, spec_of, train_batch

LATENT = replace(
    world.MODEL,
    layers=1,
    dense_layers=(0,),
    heads=5,
    query_rank=24,
    kv_rank=40,
    nope_head_size=12,
    rope_head_size=8,
    value_head_size=10,
    rotary_neighbours=True,
)
# Sequences are up to six times as long as what a query looks at.
SPARSE = replace(LATENT, index_keys=16, index_heads=3, index_head_size=12)
SLOTS, TOKENS = 4, 512
CHUNKS = (1, 7, 64)  # 1 is decode


@pytest.fixture(autouse=True, scope="module")
def _latent():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "MODEL", LATENT)
        yield


def _items() -> list[Item]:
    """The base and every slot but the last; several blocks of keys."""
    found = random_sequences(6, 1, seed=2, longest=100)
    return [Item(item.tokens, i % SLOTS - 1) for i, item in enumerate(found)]


def _hyper(slots: list[int]) -> TrainHyper:
    ones = np.ones(len(slots), np.float32)
    columns = (0.01 * ones, 0.1 * ones, ones, 0.9 * ones, 0.95 * ones, 1e-8 * ones)
    return TrainHyper(np.asarray(slots, np.int32), *columns, np.ones(len(slots), bool))


def _train(base, items: list[Item], slots: list[int]):
    """Two steps; the items' slots count among `slots`. The bank, and the first step's log-probabilities."""
    bank, seen = make_bank(SLOTS), []
    opt = init_opt(bank)
    for _ in range(2):
        bank, opt, metrics = train_step(base, bank, opt, train_batch(items, TOKENS, 8), _hyper(slots))
        seen.append(rows_of(items, np.asarray(metrics.logprobs)))
    return jax.device_get(bank), seen[0]


def _differing(left, right) -> int:
    return sum(int(np.sum(a.view(np.uint32) != b.view(np.uint32))) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("precision", "config"),
    [pytest.param("float32", LATENT, marks=pytest.mark.slow), ("bfloat16", SPARSE)],
    ids=["all", "sparse"],
)
def test_served_as_trained_in_any_chunks(precision, config, monkeypatch):
    monkeypatch.setattr(world, "MODEL", config)
    base, items = make_base(precision), _items()
    _, trained = _train(base, items, [0, 1, 2])
    assert _differing(serve_logprobs(base, make_bank(SLOTS), items, CHUNKS, 128), trained) == 0


def test_trained_alone_as_among_others():
    base, items = make_base(), _items()
    mixed, _ = _train(base, items, [0, 1, 2])
    mine = [Item(item.tokens, 0) for item in items if item.slot == 1]
    alone, _ = _train(base, mine, [1])
    start = make_bank(SLOTS).factors
    assert {"q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj"} < set(start)
    for site, pair in start.items():
        for name, before in pair.items():
            together, own = mixed.factors[site][name], alone.factors[site][name]
            assert together[:, 1].tobytes() == own[:, 1].tobytes()
            assert together[:, 3].tobytes() == np.asarray(before)[:, 3].tobytes()
            assert np.any(own[:, 1] != np.asarray(before)[:, 1])


def test_absent_and_fresh_adapters_are_the_base():
    base = make_base()
    bank = make_bank(3, {slot: init_adapter(LATENT, spec_of(slot), slot) for slot in range(2)})
    items = _items()
    bare = [Item(item.tokens, -1) for item in items]
    expected = np.asarray(score(base, None, train_batch(bare, TOKENS, 8)))
    assert np.asarray(score(base, bank, train_batch(bare, TOKENS, 8))).tobytes() == expected.tobytes()
    fresh = [Item(item.tokens, i % 3) for i, item in enumerate(items)]  # two fresh adapters and an empty slot
    assert np.asarray(score(base, bank, train_batch(fresh, TOKENS, 8))).tobytes() == expected.tobytes()
