"""Laws 2 and 3 with the TPU's kernels, run by the interpreter; the other law tests run the portable form.

Small, because a step of an interpreted kernel's grid takes about 10 ms.
"""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
from flax import nnx

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.model import Base
from pefx.optim import init_opt
from pefx.steps import TrainHyper, train_step
from tests.interpreter import in_the_interpreter
from tests.laws.world import MODEL, PAGE, Item, random_sequences, rows_of, serve_logprobs, spec_of, train_batch
from tests.model_small import random_adapter

SLOTS = 3
LONGEST = 6
# Heads as wide as the kernels take them.
SHAPE = replace(MODEL, layers=2, hidden=32, heads=2, kv_heads=1, head_size=128, dense_layers=(0,), experts=4)


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
    bank, pages = _bank(), len(items)
    batch = train_batch(items, pages * PAGE, pages)
    step = in_the_interpreter(train_step, _base(), bank, init_opt(bank), batch, _hyper(slots))
    bank, _, metrics = jax.device_get(step)
    return bank, rows_of(items, metrics.logprobs)


@cache
def _mixed() -> tuple[Bank, list[np.ndarray]]:
    return _train(_sequences(), [0, 1])


def _mismatches(left: list[np.ndarray], right: list[np.ndarray]) -> int:
    return sum(int(np.sum(a.view(np.uint32) != b.view(np.uint32))) for a, b in zip(left, right, strict=True))


def test_decodes_and_chunks_have_the_bits_of_the_training_step():
    trained = _mixed()[1]
    for chunks, tokens in (((1,), 3), ((LONGEST,), 2 * LONGEST)):
        served = in_the_interpreter(serve_logprobs, _base(), _bank(), _sequences(), chunks, tokens)
        assert sum(map(len, served)) >= LONGEST
        assert _mismatches(served, trained) == 0


def test_an_adapter_alone_ends_in_the_bits_it_has_among_others():
    bank, _ = _mixed()
    alone, _ = _train([Item(_sequences()[2].tokens, 0)], [1])
    for mixed, own, start in zip(*(jax.tree.leaves(b.factors) for b in (bank, alone, _bank())), strict=True):
        assert mixed[:, 1].tobytes() == own[:, 1].tobytes()
        assert mixed[:, 2].tobytes() == np.asarray(start)[:, 2].tobytes()
        assert np.any(own[:, 1] != np.asarray(start)[:, 1])
