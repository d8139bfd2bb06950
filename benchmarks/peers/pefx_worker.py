"""The worker that is not a peer: pefx itself. `python pefx_worker.py MODEL_DIR`; commands in protocol.py.

Training is the step that `train.py` runs, every core a shard with adapters of its own; generation is `serve.py`'s
scheduler and runner, from prompts to tokens. LoRA sits on attention and on every expert, at full rank.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from case import Case, vocab_size
from protocol import serve
from traffic import Traffic  # isort: split

import jax
import numpy as np
from pefx_serving import serving

from pefx import steps
from pefx.adapters.bank import Bank, by_slot, empty_bank, load_adapter
from pefx.adapters.methods import init_adapter
from pefx.config import AdapterSpec, MeshConfig
from pefx.loading import load_base
from pefx.mesh import of_base, on_mesh, place, resolved, use_cores
from pefx.model import Base
from pefx.optim import init_opt
from pefx.packing import TILE, whole_pages
from pefx.serving.generation import Generation
from pefx.serving.pages import PageAllocator
from pefx.serving.runner import Room, Runner
from pefx.serving.scheduler import Sampling, Scheduler, Sequence, Shard
from pefx.store.residency import Residency
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, Lesson, lay_out

PAGE, STEP_TILES = 32, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "experts.gate_proj", "experts.up_proj", "experts.down_proj")


@dataclass(frozen=True)
class Policy:
    """What the scheduler asks of a revision: its name, which says which adapter it is."""

    index: int

    @property
    def key(self) -> str:
        return str(self.index)


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


def generation(base: Base, case: Case) -> Callable[[], float]:
    """Greedy continuation of all prompts from one running batch, sequence i with adapter i % adapters."""
    mesh = resolved(MeshConfig(), case.sequences)
    shards = mesh.rows
    sequences = -(-case.sequences // shards)
    pages = sequences * whole_pages(case.prompt + case.new, PAGE)
    slots = -(-case.slots // shards)
    prompts = case.draw(base.config.vocab_size)
    with on_mesh(mesh):
        bank = filled_bank(base, case, shards * slots) if case.adapters else None
        runner = Runner(base, bank, Room(shards, pages, PAGE, sequences, STEP_TILES, TILE))

    def fresh() -> tuple[Scheduler, list[Sequence]]:
        residencies = [Residency(slots) if case.adapters else None for _ in range(shards)]
        for adapter in range(case.adapters):  # resident already, as they are in the bank
            residency = residencies[adapter % shards]
            assert residency is not None
            residency.acquire(str(adapter))
            residency.release(str(adapter))
        scheduler = Scheduler(
            shards=[Shard(PageAllocator(pages), residency) for residency in residencies],
            sequences=sequences,
            tiles=STEP_TILES,
            tile=TILE,
            page_size=PAGE,
        )
        asked = []
        for index, prompt in enumerate(prompts):
            policy = Policy(index % case.adapters) if case.adapters else None
            answer = Generation(lambda ids: "", case.new, (), frozenset())
            asked.append(Sequence(index, prompt, policy, Sampling(0, 1, 0, 0), answer, case.new, score_prompt=False))
        return scheduler, asked

    def run() -> float:
        scheduler, asked = fresh()
        with on_mesh(mesh):
            start = time.perf_counter()
            for sequence in asked:
                scheduler.submit(sequence)
            while not scheduler.idle:
                assert not scheduler.admit(), "every adapter is in its slot already"
                plan = scheduler.plan()
                assert plan is not None
                scheduler.commit(plan, *runner.run(plan))
            seconds = time.perf_counter() - start
        if any(len(sequence.generation.tokens) != case.new for sequence in asked):
            raise RuntimeError("a sequence ended early")
        return seconds

    return run


def main() -> None:
    """Serves the commands on standard input."""
    use_cores()
    model_dir = Path(sys.argv[1])
    kinds = {"train": training, "generate": generation}

    def prepare(case: Case | Traffic) -> Callable[[], float]:
        if isinstance(case, Traffic):
            return serving(model_dir, case)
        base, _ = load_base(model_dir, "float32")
        assert base.config.vocab_size == vocab_size(model_dir)
        return kinds[case.kind](base, case)

    serve(prepare)


if __name__ == "__main__":
    main()
