"""Law 2: a log-probability has the same bits from decode, from prefill in any chunks, and inside `train_step`."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.config import Precision
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import whole_pages
from pefx.steps import TrainHyper, train_step
from tests.laws import world
from tests.laws.world import (
    MODEL,
    PAGE,
    Item,
    make_bank,
    make_base,
    random_adapter,
    random_sequences,
    rows_of,
    serve_logprobs,
    spec_of,
    train_batch,
)

SLOTS, SEQUENCES = 64, 64
WIDTH = 32  # pages of a training step
LAYERS = 10  # of a base whose layers are looped over
# (sequences in flight, tokens of a prefill chunk, tokens of a step); chunk 1 is decode, 256 is a whole prompt.
WAYS = [
    (1, (1,), 2),
    (3, (1,), 3),
    (16, (1,), 16),
    (64, (1,), 64),
    (64, (7,), 64),
    (64, (64,), 128),
    (64, (256,), 256),
    (64, (1, 7, 64), 128),
]
LATER = {"float32": (1, 5), "bfloat16": (1, 2, 4, 5, 6)}  # ways left to the slow suite


@cache
def _base(precision: Precision) -> Base:
    return make_base(precision)


@cache
def _bank() -> Bank:
    return make_bank(SLOTS)


@cache
def _sequences(adapters: int) -> list[Item]:
    """Sequences of the base and of the first `adapters` slots, every slot at least once where there are as many."""
    found = random_sequences(SEQUENCES, adapters, seed=adapters, longest=160)
    return [Item(s.tokens, i % adapters if i % 8 else s.slot) for i, s in enumerate(found)]


def _trained(
    precision: Precision, sequences: list[Item], width: int = WIDTH, base: Base | None = None
) -> list[np.ndarray]:
    """Log-probabilities out of the training step's own forward; sequences are packed `width` pages to a step."""
    base, bank, out, batch = base or _base(precision), make_bank(SLOTS), [], []
    opt = init_opt(bank)
    ones, active = np.ones(SLOTS, np.float32), np.arange(SLOTS, dtype=np.int32)
    hyper = TrainHyper(active, ones, ones, ones, ones, ones, ones, np.zeros(SLOTS, bool))
    for index, item in enumerate(sequences):
        batch.append(item)
        ahead = [len(s.tokens) for s in batch] + [len(s.tokens) for s in sequences[index + 1 : index + 2]]
        if index + 1 == len(sequences) or sum(whole_pages(n, PAGE) for n in ahead) > width:
            bank, opt, metrics = train_step(base, bank, opt, train_batch(batch, width * PAGE, width), hyper)
            out.extend(rows_of(batch, np.asarray(metrics.logprobs)))
            batch = []
    return out


@cache
def _reference(precision: Precision, adapters: int) -> list[np.ndarray]:
    return _trained(precision, _sequences(adapters))


def _mismatches(left: list[np.ndarray], right: list[np.ndarray]) -> int:
    pairs = zip(left, right, strict=True)
    return sum(int(np.sum(a.view(np.uint32) != b.view(np.uint32))) for a, b in pairs)


def _compare(precision: Precision, adapters: int, way: tuple[int, tuple[int, ...], int]) -> None:
    flight, chunks, tokens = way
    sequences = _sequences(adapters)[: max(flight, 2)]
    trained = _reference(precision, adapters)[: len(sequences)]
    # One at a time means one at a time: nobody else in the batch.
    groups = [[s] for s in sequences] if flight == 1 else [sequences]
    served = [x for g in groups for x in serve_logprobs(_base(precision), _bank(), g, chunks, tokens, seed=chunks[0])]
    assert sum(map(len, served)) >= 40 * len(sequences)
    assert _mismatches(served, trained) == 0


def _cases() -> list[Any]:
    """Every way at either precision; some of them are left to the slow suite."""
    out = []
    for precision in ("float32", "bfloat16"):
        for index, (flight, chunks, tokens) in enumerate(WAYS):
            marks = [pytest.mark.slow] if index in LATER[precision] else []
            name = f"{precision}-batch{flight}-chunk{'+'.join(map(str, chunks))}-step{tokens}"
            out.append(pytest.param(precision, WAYS[index], marks=marks, id=name))
    return out


@pytest.mark.parametrize(("precision", "way"), _cases())
def test_sixty_four_adapters_of_mixed_ranks(precision, way):
    _compare(precision, 64, way)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_in_a_loop(precision, monkeypatch):
    monkeypatch.setattr(world, "MODEL", replace(MODEL, layers=LAYERS, dense_layers=(0,)))
    base, sequences = make_base(precision), _sequences(64)[:8]
    trained = _trained(precision, sequences, base=base)
    assert _mismatches(serve_logprobs(base, make_bank(SLOTS), sequences, (1, 7, 64), 128), trained) == 0


@pytest.mark.parametrize("way", [WAYS[2], WAYS[4]], ids=["decode", "chunks"])
@pytest.mark.parametrize("adapters", [1, 6])
def test_few_adapters(adapters, way):
    _compare("float32", adapters, way)


def test_the_comparison_covers_enough_tokens():
    lengths = [len(s.tokens) - 1 for s in _sequences(64)]
    compared = [case for case in _cases() if not case.marks]
    assert sum(sum(lengths[: max(case.values[1][0], 2)]) for case in compared) >= 20_000


def test_a_training_step_gives_the_same_bits_in_any_company():
    sequences, trained = _sequences(6), _reference("float32", 6)
    order = np.random.default_rng(0).permutation(len(sequences))[:16]
    shuffled = _trained("float32", [sequences[i] for i in order])
    assert _mismatches(shuffled, [trained[i] for i in order]) == 0
    assert _mismatches(_trained("float32", sequences[:8], width=8), trained[:8]) == 0


def test_slots_may_be_shuffled():
    sequences, trained = _sequences(6)[:16], _reference("float32", 6)[:16]
    place = np.random.default_rng(1).permutation(SLOTS)[:6]
    bank = empty_bank(MODEL, bank_spec([spec_of(s) for s in range(6)]), SLOTS)
    for slot in range(6):
        bank = load_adapter(bank, int(place[slot]), random_adapter(slot), spec_of(slot))
    moved = [Item(s.tokens, int(place[s.slot]) if s.slot >= 0 else -1) for s in sequences]
    assert _mismatches(serve_logprobs(_base("float32"), bank, moved, (64,), 128), trained) == 0


def test_the_comparison_sees_a_single_bit():
    values = [np.array([1.0], np.float32)]
    assert _mismatches(values, [np.nextafter(values[0], np.float32(2))]) == 1
