"""Held-out losses do not depend on what shares the batch."""

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import Bank, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.model import Base
from pefx.training.heldout import Exam, nats_per_token
from pefx.training.planner import Layout, Lesson, lesson

MODEL = ModelConfig(
    vocab_size=256, hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, dense_hidden=32, expert_hidden=16,
    experts=4, experts_per_token=2, context=64,
)  # fmt: skip
LAYOUT = Layout(shares=4, share=32, length=32, page_size=16)


def make_lesson(length: int, seed: int) -> Lesson:
    rng = np.random.default_rng(seed)
    return lesson(rng.integers(0, 256, length), rng.integers(0, 2, length) | (np.arange(length) == 1), -1)


def make_bank() -> Bank:
    """Two adapters with a delta that is not zero."""
    bank = empty_bank(MODEL, AdapterSpec(rank=4), 2)
    for slot in range(2):
        adapter = init_adapter(MODEL, AdapterSpec(rank=4), slot)
        rng = np.random.default_rng(slot)
        adapter = jax.tree.map(lambda x, rng=rng: (x + rng.normal(0, 0.1, x.shape)).astype(np.float32), adapter)
        bank = load_adapter(bank, slot, adapter, AdapterSpec(rank=4))
    return bank


def test_together_or_alone_the_same_numbers() -> None:
    base, bank = Base(MODEL, nnx.Rngs(0)), make_bank()
    texts = [tuple(make_lesson(length, length) for length in lengths) for lengths in ((33, 9, 20), (31,), (12, 30))]
    exams = [Exam(text, slot) for text in texts for slot in (-1, 0, 1)]
    together = nats_per_token(base, bank, exams, LAYOUT)
    assert together == [nats_per_token(base, bank, [exam], LAYOUT)[0] for exam in exams]
    assert together == nats_per_token(base, bank, exams[::-1], LAYOUT)[::-1]
    assert len(set(together)) == len(exams)
    # The bare base, with a bank beside it or none at all.
    alone = nats_per_token(base, None, [Exam(text, -1) for text in texts], LAYOUT)
    assert alone == together[::3]
    assert all(4 < value < 8 for value in together)  # near log 256


def test_text_without_a_target_is_refused() -> None:
    silent = lesson(np.zeros(5, np.int32), np.zeros(5), -1)
    with pytest.raises(PefxError, match="without a token that counts"):
        nats_per_token(Base(MODEL, nnx.Rngs(0)), None, [Exam((silent,), -1)], LAYOUT)
