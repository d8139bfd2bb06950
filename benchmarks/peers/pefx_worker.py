"""The worker that is not a peer: pefx itself. `python pefx_worker.py MODEL_DIR`; commands in protocol.py.

Training is the step that `train.py` runs, every core a shard with adapters of its own; generation and serving are
`serve.py`'s engine, from requests to answers. LoRA sits on attention and on every expert, at full rank.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case, vocab_size
from protocol import serve
from traffic import Traffic  # isort: split

import jax
import numpy as np
from pefx_serving import TARGETS, generation, serving

from pefx import steps
from pefx.adapters.bank import Bank, by_slot, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, MeshConfig
from pefx.loading import load_base
from pefx.mesh import of_base, on_mesh, place, resolved, use_cores
from pefx.model import Base
from pefx.optim import init_opt
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, Lesson, lay_out

PAGE = 32


def filled_bank(base: Base, case: Case, slots: int) -> Bank:
    """A bank of `slots` slots, each with a random adapter whose delta is not zero."""
    spec = AdapterSpec(rank=case.rank, alpha=float(case.rank), targets=TARGETS)
    bank, rng = empty_bank(base.config, spec, slots), np.random.default_rng(0)
    adapter = init_adapter(base.config, spec, 0)
    for pair in adapter.values():
        pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.01
    for slot in range(slots):
        bank = load_adapter(bank, slot, adapter, spec)
    return bank


def training(base: Base, case: Case) -> Callable[[], float]:
    """One step of every adapter on its own sequences, in one mixed batch."""
    mesh = resolved(MeshConfig(), case.adapters)
    shards = mesh.rows
    own, share = -(-case.adapters // shards), case.sequences // case.adapters
    layout = Layout(own, share * case.length, case.length, PAGE, shards)
    words = np.asarray(case.draw(base.config.vocab_size), np.int32)
    ones = np.ones(case.length, np.float32)
    rows: list[list[list[Lesson]]] = [[[] for _ in range(own)] for _ in range(shards)]
    for index, row in enumerate(words):
        adapter = index % case.adapters
        rows[adapter % shards][adapter // shards].append(Lesson(row[:-1], row[1:], ones, adapter // shards))
    batch = device_batch(lay_out(rows, layout))
    slots = -(-case.slots // shards)

    def each(value: float) -> np.ndarray:
        return np.full(shards * own, value, np.float32)

    hyper = steps.TrainHyper(
        slots=np.tile(np.arange(own, dtype=np.int32), shards),
        learning_rate=each(1e-4),
        weight_decay=each(0.01),
        clip=each(1.0),
        beta1=each(0.9),
        beta2=each(0.999),
        epsilon=each(1e-8),
        apply=np.ones(shards * own, bool),
    )
    with on_mesh(mesh):
        bank = place(by_slot, filled_bank(base, case, shards * slots))
        state: list[Any] = [bank, place(by_slot, init_opt(bank, accumulate=False)), place(of_base, base)]

    def run() -> float:
        with on_mesh(mesh):
            start = time.perf_counter()
            state[0], state[1], metrics = steps.train_step(state[2], state[0], state[1], batch, hyper)
            jax.block_until_ready((state[0], metrics))
            return time.perf_counter() - start

    return run


def main() -> None:
    """Serves the commands on standard input."""
    use_cores()
    model_dir = Path(sys.argv[1])

    def prepare(case: Case | Traffic) -> Callable[[], float]:
        if isinstance(case, Traffic):
            return serving(model_dir, case)
        if case.kind == "generate":
            return generation(model_dir, case)
        base, _ = load_base(model_dir, "float32")
        assert base.config.vocab_size == vocab_size(model_dir)
        return training(base, case)

    serve(prepare)


if __name__ == "__main__":
    main()
