"""Laws 2 and 3 with the TPU's kernels, run by the interpreter; the other law tests run the portable form.

Small, because a step of an interpreted kernel's grid takes about 10 ms.
"""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from kernels.expert_lora import api as expert_lora
from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.adapters.shared import fresh_adapter
from pefx.config import AdapterSpec
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import FRESH
from pefx.steps import TrainHyper, score, train_step
from pefx.training.remembering import flags
from tests.interpreter import in_the_interpreter
from tests.laws import world
from tests.laws.world import MODEL, Item, random_sequences, rows_of, serve_logprobs, spec_of, train_batch
from tests.model_small import random_adapter

SLOTS = 3
LONGEST = 6
# Heads as wide as the kernels take them.
SHAPE = replace(MODEL, layers=1, hidden=32, heads=2, kv_heads=1, head_size=128, dense_layers=(), experts=4)


@pytest.fixture(autouse=True, scope="module")
def _one_size_of_tiles():
    """Eight rows, as decodes come. On a CPU the bits of an interpreted product depend on it; on a TPU they do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "PAGE", 8)
        patch.setattr(world, "TILE", 8)
        patch.setattr(expert_lora, "TPU_CHUNKS", (8, 8))
        yield


@cache
def _base() -> Base:
    return Base(SHAPE, nnx.Rngs(7))


def _bank() -> Bank:
    bank = empty_bank(SHAPE, bank_spec([spec_of(slot) for slot in range(SLOTS)]), SLOTS)
    for slot in range(SLOTS):
        bank = load_adapter(bank, slot, random_adapter(SHAPE, spec_of(slot), slot), spec_of(slot))
    return bank


@cache
def _sequences() -> list[Item]:
    """One of the base and one of each of two adapters."""
    found = random_sequences(3, 1, seed=5, longest=LONGEST)
    return [Item(item.tokens, slot) for slot, item in enumerate(found, start=-1)]


def _hyper(slots: list[int]) -> TrainHyper:
    ones = np.ones(len(slots), np.float32)
    columns = (0.01 * ones, 0.1 * ones, ones, 0.9 * ones, 0.95 * ones, 1e-8 * ones)
    return TrainHyper(np.asarray(slots, np.int32), *columns, np.ones(len(slots), bool))


def _train(items: list[Item], slots: list[int]) -> tuple[Bank, list[np.ndarray]]:
    """One training step of `items`, whose slots count among `slots`; the bank after it and the log-probabilities."""
    bank, batch = _bank(), train_batch(items, 3 * world.PAGE, 3)
    step = in_the_interpreter(train_step, _base(), bank, init_opt(bank), batch, _hyper(slots))
    bank, _, metrics = jax.device_get(step)
    return bank, rows_of(items, metrics.logprobs)


@pytest.mark.slow
def test_served_as_trained_and_alone_as_among_others():
    """Both laws in one test: each would compile the training step, most of its time."""
    base, first, second = _sequences()
    bank, trained = _train([base, first, second], [0, 1])
    served = in_the_interpreter(serve_logprobs, _base(), _bank(), _sequences(), (1, 2, LONGEST), 2 * LONGEST)
    assert sum(map(len, served)) >= LONGEST
    differ = [int(np.sum(a.view(np.uint32) != b.view(np.uint32))) for a, b in zip(served, trained, strict=True)]
    assert differ == [0, 0, 0]
    alone, _ = _train([Item(second.tokens, 0)], [1, SLOTS])
    for mixed, own, start in zip(*(jax.tree.leaves(b.factors) for b in (bank, alone, _bank())), strict=True):
        assert mixed[:, 1].tobytes() == own[:, 1].tobytes()
        assert mixed[:, 2].tobytes() == np.asarray(start)[:, 2].tobytes()
        assert np.any(own[:, 1] != np.asarray(start)[:, 1])


@pytest.mark.slow
def test_a_memory_is_written_step_by_step_as_at_once():
    spec, rng = AdapterSpec("delta_mem", 8, 16.0, ("memory",)), np.random.default_rng(6)
    fresh = fresh_adapter(_base(), spec, 1)["memory"]
    noise = {name: x + rng.normal(scale=0.3, size=x.shape).astype(np.float32) for name, x in fresh.items()}
    bank = load_adapter(empty_bank(SHAPE, bank_spec([spec]), SLOTS, [spec]), 1, {"memory": noise}, spec, _base())
    tokens = rng.integers(0, SHAPE.vocab_size, 2 * world.TILE).astype(np.int32)
    item = Item(tokens, 1, flags(np.ones(len(tokens), bool), "tokens", FRESH))
    batch = train_batch([item], 2 * world.PAGE, 1, memory=True)
    (at_once,) = rows_of([item], np.asarray(in_the_interpreter(score, _base(), bank, batch)))
    (stepped,) = in_the_interpreter(serve_logprobs, _base(), bank, [item], (1, 3, world.TILE), 2 * world.PAGE)
    assert at_once.tobytes() == stepped.tobytes()
    bare = Item(tokens, -1)
    (base,) = in_the_interpreter(serve_logprobs, _base(), bank, [bare], (len(tokens),), 2 * world.PAGE)
    assert np.abs(base - stepped).max() > 1e-3
