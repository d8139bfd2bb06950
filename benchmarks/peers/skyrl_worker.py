"""Peer worker: SkyRL tx, its JaxBackend on the CPU. `python skyrl_worker.py MODEL_DIR`; commands in protocol.py.

The backend is called as SkyRL's engine calls it: one `forward_backward` over the sequences of all adapters, one
`optim_step` for each, one `sample` for a mixed batch. What the engine and its HTTP server do around that is not timed.

LoRA is SkyRL's default: attention and experts, with `rank // experts` (at least 1) as the rank inside an expert. The
unembedding and the embedding have no trained adapter, but the padded matrices of all sites are computed with.
"""
# pyright: reportMissingImports=false

import gc
import logging
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from case import Case, vocab_size
from protocol import serve
from traffic import Asked, Traffic, longest_first  # isort: split

import jax
import typing_extensions

# SkyRL gives a TypedDict of `typing` to pydantic, which takes only this one before Python 3.12.
typing.TypedDict = typing_extensions.TypedDict

from skyrl.backends.jax import JaxBackend, JaxBackendConfig  # noqa: E402
from skyrl.tinker import types  # noqa: E402

RATE = 1e-4
ADAM = types.AdamParams(learning_rate=RATE, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
RESIDENT = "resident"  # the name of weights that are already in their slot, so that sampling loads nothing
# A prefill makes a masked copy of all rows for each expert of each slot: 64 sequences with 65 slots want 18 GB at once.
# SkyRL's own limit cuts such a batch; 16 was the fastest of 8, 16 and 32 for 32 adapters (24, 42 and 25 tokens/s).
SAMPLE_BATCH = 16


@dataclass
class Engine:
    """A backend and the adapters in it. Its size is part of what is compiled: another size is another backend."""

    model_dir: Path
    size: tuple[int, int] = (0, 0)  # slots, rank
    backend: JaxBackend | None = field(default=None, repr=False)

    def resized(self, slots: int, rank: int, batch: int) -> JaxBackend:
        """A backend of that size that samples `batch` sequences at once, without the adapters of the case before."""
        backend = self.backend
        if backend is None or self.size != (slots, rank):
            backend = self.backend = None
            gc.collect()
            # A training batch is one micro-batch: 8 sequences made 157 tokens/s; 145, 123 and 74 in fours, twos and
            # ones. The loss is not cut in chunks: one would be padded to 1024 tokens. Gradient checkpoints are off.
            config = JaxBackendConfig(max_lora_adapters=slots, max_lora_rank=rank, loss_chunk_size=0)
            backend = self.backend = JaxBackend(str(self.model_dir), config)
            self.size = (slots, rank)
        backend.config.sample_max_num_sequences = batch
        for name in list(backend.models):
            backend.delete_model(name)
        return backend

    def prepare(self, case: Case | Traffic) -> Callable[[], float]:
        """What `serve` asks for."""
        if isinstance(case, Traffic):
            backend = self.resized(case.adapters + 1, case.rank, case.batch)
            names = adapters(backend, case.adapters, case.rank, sampled=True)
            return sampling(backend, names, longest_first(case.draw(vocab_size(self.model_dir))))
        if case.adapters >= case.slots:
            raise ValueError(f"{case.adapters} adapters need {case.adapters + 1} slots: slot 0 is the base's")
        # A batch below the limit would be padded up to it.
        backend = self.resized(case.slots, case.rank, min(case.sequences, SAMPLE_BATCH))
        words = case.draw(vocab_size(self.model_dir))
        names = adapters(backend, case.adapters, case.rank, sampled=case.kind == "generate")
        if case.kind == "train":
            return training(backend, names, words)
        return sampling(backend, names, [Asked(row, case.new, i % max(len(names), 1)) for i, row in enumerate(words)])


def adapters(backend: JaxBackend, count: int, rank: int, sampled: bool) -> list[str]:
    """Makes fresh adapters; returns their names."""
    names = [f"adapter{i}" for i in range(count)]
    for i, name in enumerate(names):
        backend.create_model(name, types.LoraConfig(rank=rank, alpha=rank, seed=i))
        if sampled:
            # Sampling needs no moments, and those of each adapter are as large as the bank: 64 would not fit.
            backend.optimizers[name] = None
            backend.models[name].loaded_checkpoint_id = RESIDENT
    return names


def model_input(words: list[int]) -> types.ModelInput:
    """Tokens in the form of SkyRL's requests."""
    return types.ModelInput(chunks=[types.EncodedTextChunk(type="encoded_text", tokens=words)])


def training(backend: JaxBackend, names: list[str], words: list[list[int]]) -> Callable[[], float]:
    """One forward and backward pass over the sequences of all adapters, then one optimizer step for each."""
    share = len(words) // len(names)
    owned = [words[i :: len(names)] for i in range(len(names))]
    rows = [row for own in owned for row in own]  # as the engine lays them: the request of one adapter after another
    zeros = [[0.0] * (len(row) - 1) for row in rows]
    batch = types.PreparedModelPassBatch(
        all_model_inputs=[model_input(row[:-1]) for row in rows],
        all_targets=[row[1:] for row in rows],
        all_token_weights=[[1.0] * (len(row) - 1) for row in rows],
        all_sampling_logprobs=zeros,
        all_advantages=zeros,
        all_values=zeros,
        all_returns=zeros,
        all_model_ids=[name for name in names for _ in range(share)],
        all_loss_fns=["cross_entropy"] * len(rows),
        all_loss_fn_configs=[None] * len(rows),
        request_batch_slices=[(name, name, i * share, (i + 1) * share) for i, name in enumerate(names)],
    )
    step = types.OptimStepInput(adam_params=ADAM)

    def run() -> float:
        start = time.perf_counter()
        backend.forward_backward(batch)
        for name in names:
            backend.optim_step(name, step)
        jax.block_until_ready(backend.lora_params)
        return time.perf_counter() - start

    return run


def sampling(backend: JaxBackend, names: list[str], asked: list[Asked]) -> Callable[[], float]:
    """Greedy continuation of all prompts, which the backend cuts into batches; without `names`, by the base."""
    owners = [names[one.adapter] if names else "" for one in asked]
    params = {new: types.SamplingParams(temperature=0.0, max_tokens=new, seed=0) for new in {one.new for one in asked}}
    batch = types.PreparedSampleBatch(
        all_model_inputs=[model_input(one.prompt) for one in asked],
        all_sampling_params=[params[one.new] for one in asked],
        all_model_ids=owners,
        all_checkpoint_ids=[RESIDENT if owner else "" for owner in owners],
        all_checkpoint_paths=[""] * len(asked),
        all_session_ids=[None] * len(asked),
        needs_prompt_logprobs=False,
        request_batch_slices=[(str(i), owner, i, i + 1, False) for i, owner in enumerate(owners)],
    )

    def run() -> float:
        start = time.perf_counter()
        outputs = backend.sample(batch)
        seconds = time.perf_counter() - start
        for i, one in enumerate(asked):
            (sequence,) = outputs[str(i)].sequences
            if len(sequence.tokens) != one.new:
                raise RuntimeError(f"generated {len(sequence.tokens)} tokens of {one.new}")
        return seconds

    return run


def main() -> None:
    """Serves the commands on standard input."""
    logging.getLogger("skyrl").setLevel(logging.WARNING)  # a line per step costs time
    serve(Engine(Path(sys.argv[1])).prepare)


if __name__ == "__main__":
    main()
