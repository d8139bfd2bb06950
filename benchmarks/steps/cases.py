"""Steps on the shape of the shipped base, random weights, one shard: what the step benchmarks run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec, ModelConfig
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import TILE, Sizes, Span, pack, whole_pages
from pefx.sampling import greedy
from pefx.steps import ServePlan, ServeState, TrainBatch, TrainHyper, serve_step, train_step

MODEL = ModelConfig()
SPEC = AdapterSpec()
ADAPTERS = 8
SHARE = 256  # training tokens of each adapter
PAGE = 32
HISTORY = 128  # tokens before the one that a decode step adds


@dataclass
class Step:
    """A step that carries its own state from call to call: `arguments` is changed by each."""

    tokens: int
    function: Callable[..., Any]
    arguments: list[Any]
    carried: dict[int, int]  # which result goes to which argument

    def __call__(self) -> Any:
        """One call; returns its results."""
        results = self.function(*self.arguments)
        for result, argument in self.carried.items():
            self.arguments[argument] = results[result]
        return results

    def compiled_text(self) -> str:
        """The optimized program."""
        return self.function.jitted().lower(*self.arguments).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]


def training(base: Base) -> Step:
    """A training step of `ADAPTERS` x `SHARE` tokens."""
    tokens, pages = ADAPTERS * SHARE, SHARE // PAGE
    words = np.random.default_rng(0).integers(0, MODEL.vocab_size, tokens + 1).astype(np.int32)
    spans = [Span(words[i * SHARE : (i + 1) * SHARE], 0, i, range(i * pages, (i + 1) * pages)) for i in range(ADAPTERS)]
    sizes = Sizes(0, tokens // TILE, tokens // PAGE, pages, PAGE)
    fields: dict[str, Any] = pack(spans, sizes)
    batch = TrainBatch(TokenBatch(**fields), words[1:], np.ones(tokens, np.float32))

    def each(value: float) -> np.ndarray:
        return np.full(ADAPTERS, value, np.float32)

    hyper = TrainHyper(
        slots=np.arange(ADAPTERS, dtype=np.int32),
        learning_rate=each(1e-3),
        weight_decay=each(0),
        clip=each(1),
        beta1=each(0.9),
        beta2=each(0.95),
        epsilon=each(1e-8),
        apply=np.ones(ADAPTERS, bool),
    )
    bank = filled_bank()
    return Step(tokens, train_step, [base, bank, init_opt(bank), batch, hyper], {0: 1, 1: 2})


def serving(base: Base, count: int, adapters: bool) -> Step:
    """One decode step of `count` sequences, each with `HISTORY` tokens behind it, with or without adapters."""
    blocks = whole_pages(HISTORY + 1, PAGE)
    spans = [
        Span([7], HISTORY, i % ADAPTERS if adapters else -1, range(i * blocks, (i + 1) * blocks)) for i in range(count)
    ]
    fields: dict[str, Any] = pack(spans, Sizes(count, 0, count, blocks, PAGE))
    plan = ServePlan(
        batch=TokenBatch(**fields),
        rows=np.arange(count, dtype=np.int32),
        targets=np.full(count, -1, np.int32),
        how=greedy(count),
        singles=count,
    )
    state = ServeState(KVPool.zeros(MODEL, count * blocks, PAGE))
    return Step(count, serve_step, [base, filled_bank() if adapters else None, state, plan], {0: 2})


def filled_bank():
    bank = empty_bank(MODEL, SPEC, ADAPTERS)
    for slot in range(ADAPTERS):
        bank = load_adapter(bank, slot, init_adapter(MODEL, SPEC, slot), SPEC)
    return bank
