"""Times training and serving steps on the shape of the shipped base, random weights: medians of alternating repeats.

`pefx bench step_time`, or `python benchmarks/step_time.py --rounds 20`. Compilation is left out.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.methods import init_adapter
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec, ModelConfig
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import TILE, Sizes, Span, pack, whole_pages
from pefx.steps import ServePlan, ServeState, TrainBatch, TrainHyper, serve_step, train_step

MODEL = ModelConfig()
SPEC = AdapterSpec()
ADAPTERS = 8
SHARE = 256  # training tokens of each adapter
PAGE = 32
HISTORY = 128  # tokens before the one that a decode step adds


def training(base: Base) -> Callable[[], object]:
    """A training step of `ADAPTERS` x `SHARE` tokens that carries its own state from call to call."""
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
    state = [bank, init_opt(bank)]

    def step() -> object:
        state[0], state[1], metrics = train_step(base, state[0], state[1], batch, hyper)
        return metrics.loss

    return step


def serving(base: Base, count: int, adapters: bool) -> Callable[[], object]:
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
        temperature=np.zeros(count, np.float32),
        top_p=np.ones(count, np.float32),
        top_k=np.zeros(count, np.int32),
        seed=np.zeros(count, np.uint32),
        singles=count,
    )
    bank = filled_bank() if adapters else None
    state = [ServeState(KVPool.zeros(MODEL, count * blocks, PAGE))]

    def step() -> object:
        state[0], tokens, _, _ = serve_step(base, bank, state[0], plan)
        return tokens

    return step


def filled_bank():
    bank = empty_bank(MODEL, SPEC, ADAPTERS)
    for slot in range(ADAPTERS):
        bank = load_adapter(bank, slot, init_adapter(MODEL, SPEC, slot), SPEC)
    return bank


def main(rounds: int = 10) -> None:
    """Times every case once a round, so that a slow spell of the machine falls on all of them."""
    base = Base(MODEL, nnx.Rngs(0))
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        f"train, {ADAPTERS} adapters": (ADAPTERS * SHARE, training(base)),
        "decode 8, base alone": (8, serving(base, 8, adapters=False)),
        "decode 8, 8 adapters": (8, serving(base, 8, adapters=True)),
        "decode 64, base alone": (64, serving(base, 64, adapters=False)),
        "decode 64, 8 adapters": (64, serving(base, 64, adapters=True)),
    }
    for _, step in cases.values():
        jax.block_until_ready(step())
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (_, step) in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(step())
            times[name].append(time.perf_counter() - began)
    table = Table("step", title=f"median of {rounds} rounds on {jax.devices()[0].device_kind}", title_justify="left")
    for column in ("tokens", "ms", "tokens/s"):
        table.add_column(column, justify="right")
    for name, (tokens, _) in cases.items():
        median = statistics.median(times[name])
        table.add_row(name, str(tokens), f"{1e3 * median:.1f}", f"{tokens / median:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
