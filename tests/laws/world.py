"""A small random base with a bank of adapters of mixed ranks, and ways to run sequences through it, for the laws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import Adapter, init_adapter
from pefx.adapters.sites import MATRICES
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec, ExpertForm, ModelConfig, Precision
from pefx.model import Base
from pefx.packing import Sizes, Span, pack, span_rows, tile_of, whole_pages
from pefx.sampling import greedy
from pefx.steps import ServePlan, ServeState, TrainBatch, TrainHyper, serve_step

PAGE = 32
CONTEXT = 256
MODEL = ModelConfig(
    vocab_size=320,
    hidden=64,
    layers=2,
    heads=6,
    kv_heads=2,
    head_size=16,
    dense_hidden=96,
    expert_hidden=48,
    experts=8,
    experts_per_token=2,
    dense_layers=(1,),
    context=CONTEXT,
)
TILE = tile_of(PAGE)
RANKS = (1, 2, 4, 8, 16, 3)


@dataclass(frozen=True)
class Item:
    """A whole sequence, the slot of its adapter (-1: the base), and what its tokens do to its memory."""

    tokens: np.ndarray
    slot: int
    memory: np.ndarray | None = None


def make_base(precision: Precision = "float32") -> Base:
    """The same random weights at either precision (rounded for bfloat16)."""
    return Base(replace(MODEL, precision=precision), nnx.Rngs(7))


def spec_of(slot: int, form: ExpertForm = "per_expert") -> AdapterSpec:
    """Slot `slot`'s adapter spec: ranks and methods differ."""
    method = "rslora" if slot % 3 == 2 else "lora"
    return AdapterSpec(method=method, rank=RANKS[slot % len(RANKS)], targets=MATRICES, expert_form=form)


def random_adapter(slot: int, form: ExpertForm = "per_expert") -> Adapter:
    """An adapter that changes every site."""
    rng = np.random.default_rng(slot)
    adapter = init_adapter(MODEL, spec_of(slot, form), slot)
    for pair in adapter.values():
        pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.1
    return adapter


def make_bank(slots: int, adapters: dict[int, Adapter] | None = None, form: ExpertForm = "per_expert") -> Bank:
    """A bank with `adapters` by slot (default: a random one in each)."""
    adapters = {s: random_adapter(s, form) for s in range(slots)} if adapters is None else adapters
    bank = empty_bank(MODEL, bank_spec([spec_of(s, form) for s in range(len(RANKS))]), slots)
    for slot, adapter in adapters.items():
        bank = load_adapter(bank, slot, adapter, spec_of(slot, form))
    return bank


def random_sequences(count: int, slots: int, seed: int, longest: int = 200) -> list[Item]:
    """Sequences of 2 to `longest` tokens, their slots in [-1, slots)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, count)
    lengths[0] = longest
    return [Item(rng.integers(0, MODEL.vocab_size, n).astype(np.int32), int(rng.integers(-1, slots))) for n in lengths]


def train_batch(sequences: Sequence[Item], tokens: int, places: int, memory: bool = False) -> TrainBatch:
    """Whole sequences on page boundaries, every next token a target with weight 1."""
    spans, page = [], 0
    targets = np.full(tokens, -1, np.int32)
    for s in sequences:
        need = whole_pages(len(s.tokens), PAGE)
        spans.append(Span(s.tokens, 0, s.slot, range(page, page + need), s.memory))
        row = page * PAGE
        targets[row : row + len(s.tokens) - 1] = s.tokens[1:]
        page += need
    fields = pack(spans, Sizes(0, tokens // TILE, places, CONTEXT // PAGE, PAGE, TILE, memory))
    return TrainBatch(TokenBatch(**fields), targets, (targets >= 0).astype(np.float32))


def hyper_of(slots: Sequence[int], **changes: np.ndarray | dict[str, np.ndarray]) -> TrainHyper:
    """Numbers of these active slots, each with a rate of its own unless `changes` say otherwise."""
    count = len(slots)
    numbers: dict[str, Any] = {
        "learning_rate": np.float32(1e-2) + np.float32(1e-3) * np.arange(count, dtype=np.float32),
        "weight_decay": np.full(count, 0.1, np.float32),
        "clip": np.full(count, 0.5, np.float32),
        "beta1": np.full(count, 0.9, np.float32),
        "beta2": np.full(count, 0.95, np.float32),
        "epsilon": np.full(count, 1e-8, np.float32),
        "apply": np.ones(count, bool),
    }
    given: dict[str, Any] = numbers | changes
    return TrainHyper(slots=np.asarray(slots, np.int32), **given)


def rows_of(sequences: Sequence[Item], per_row: np.ndarray) -> list[np.ndarray]:
    """What a `train_batch` computed for each sequence's targets."""
    out, row = [], 0
    for s in sequences:
        out.append(np.asarray(per_row[row : row + len(s.tokens) - 1]))
        row += whole_pages(len(s.tokens), PAGE) * PAGE
    return out


def serve_logprobs(
    base: Base, bank: Bank | None, sequences: Sequence[Item], chunks: Sequence[int], tokens: int, seed: int = 0
) -> list[np.ndarray]:
    """Log-probabilities of every next token through `serve_step`, some of `chunks` tokens of a sequence at a time.

    Chunk 1 is decode. As many sequences share a step as have `tokens` tokens; pages are scattered at random, and which
    sequences move on in a step, by which of the chunks and in what order, is drawn anew each time.
    """
    rng = np.random.default_rng(seed)
    pages = CONTEXT // PAGE * len(sequences) + 3
    free = rng.permutation(pages).tolist()
    owned = [[free.pop() for _ in range(whole_pages(len(s.tokens), PAGE))] for s in sequences]
    memory = None if bank is None else bank.memory
    # Pages that nobody has written hold anything.
    state = ServeState(jax.tree.map(lambda x: x + np.nan, KVPool.zeros(base.config, pages, PAGE, memory)))
    sizes = replace(step_sizes(chunks, tokens), memory=memory is not None)
    done, out = [0] * len(sequences), [np.zeros(0, np.float32) for _ in sequences]
    while waiting := [i for i, s in enumerate(sequences) if done[i] < len(s.tokens)]:
        chosen, room = [], tokens
        for i in rng.permutation(waiting).tolist():
            size = min(int(rng.choice(chunks)), len(sequences[i].tokens) - done[i])
            if size <= room and len(chosen) < sizes.sequences:
                chosen.append((i, size))
                room -= size
        spans = [
            Span(
                sequences[i].tokens[done[i] : done[i] + size],
                done[i],
                sequences[i].slot,
                owned[i],
                _part(sequences[i].memory, done[i], size),
            )
            for i, size in chosen
        ]
        targets = [_next(sequences[i].tokens, done[i], size) for i, size in chosen]
        state, drawn, _ = serve_step(base, bank, state, serve_plan(spans, targets, sizes))
        for (i, size), row in zip(chosen, span_rows(spans, sizes), strict=True):
            out[i] = np.append(out[i], np.asarray(drawn.logprobs)[row : row + size])
            done[i] += size
    return [o[: len(s.tokens) - 1] for o, s in zip(out, sequences, strict=True)]


def step_sizes(chunks: Sequence[int], tokens: int) -> Sizes:
    """Room for any sequences that have `tokens` tokens together, each a chunk of at most `max(chunks)`."""
    singles = tokens if 1 in chunks else 0
    places = max(2, tokens // min(chunks))
    tiles = whole_pages(tokens, TILE) + places if max(chunks) > 1 else 0
    return Sizes(singles, tiles, places, CONTEXT // PAGE, PAGE, TILE)


def _part(memory: np.ndarray | None, start: int, size: int) -> np.ndarray | None:
    return None if memory is None else memory[start : start + size]


def _next(tokens: np.ndarray, start: int, size: int) -> np.ndarray:
    """The token after each of `size` tokens from `start`; 0 past the end, where the answer is not used."""
    return np.append(tokens, 0)[start + 1 : start + size + 1]


def serve_plan(spans: Sequence[Span], targets: Sequence[np.ndarray], sizes: Sizes) -> ServePlan:
    """A step that scores every row's target."""
    fields = pack(spans, sizes)
    wanted = np.full(sizes.tokens, -1, np.int32)
    for own, row in zip(targets, span_rows(spans, sizes), strict=True):
        wanted[row : row + len(own)] = own
    return ServePlan(
        TokenBatch(**fields),
        np.where(wanted >= 0, np.arange(sizes.tokens, dtype=np.int32), -1),
        wanted,
        greedy(sizes.tokens),
        sizes.singles,
    )
