"""Continuous batching: which tokens of which requests go into the next step. Plain Python, no device, no clock.

A step holds one token of every decoding sequence and chunks of prompts in whole tiles. Sequences enter as others leave.
A sequence enters a shard once it has a place in its step, pages for its full length and its adapter's slot; then
nothing can take them from it, so it always finishes.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pefx.errors import PefxError
from pefx.packing import Span, whole_pages
from pefx.serving.generation import Generation
from pefx.serving.pages import PageAllocator
from pefx.store.residency import Residency

SAMPLE = -1  # the target of a row whose next token is to be drawn


@runtime_checkable
class Adapter(Protocol):
    """What the scheduler needs to know of a revision: the name of its weights."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; `seed` in [0, 2^32). Temperature 0 is greedy, top_k 0 is off."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(eq=False)
class Sequence:
    """One request on its way: `handle` is the caller's name for it, `revision` None the bare base.

    `length` is the most tokens that will ever be in the pool, `done` how many are. The rest is set by the scheduler.
    """

    handle: int
    prompt: list[int]
    revision: Any  # an Adapter, or None
    sampling: Sampling
    generation: Generation
    max_tokens: int
    score_prompt: bool
    prompt_logprobs: list[float | None] = field(default_factory=lambda: [None])
    error: PefxError | None = None
    shard: int = -1
    slot: int = -1
    pages: tuple[int, ...] = ()
    done: int = 0
    passed: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + max(self.max_tokens - 1, 0)  # the last sampled token is never fed

    @property
    def decoding(self) -> bool:
        return self.done >= len(self.prompt)

    @property
    def over(self) -> bool:
        finished = self.decoding and self.generation.finish_reason is not None
        return finished or self.error is not None


@dataclass(frozen=True)
class Load:
    """Weights of `revision` must be in `slot` of shard `shard` before the next step."""

    shard: int
    slot: int
    revision: Any


@dataclass(frozen=True)
class Wanted:
    """The distribution after token `offset` of span `span`: score `target`, or draw a token (`SAMPLE`)."""

    span: int
    offset: int
    target: int
    sampling: Sampling


@dataclass(frozen=True)
class StepPlan:
    """One step: span i belongs to sequence i, which names its shard."""

    sequences: tuple[Sequence, ...]
    spans: tuple[Span, ...]
    wanted: tuple[Wanted, ...]


@dataclass
class Shard:
    """One shard of the mesh's `data` axis: its pages, its slots (None: no bank), the sequences that run on it."""

    pages: PageAllocator
    residency: Residency | None
    running: list[Sequence] = field(default_factory=list)


class Scheduler:
    """On each shard at most `sequences` sequences in a step, and `tiles` tiles of `tile` tokens for their prompts.

    First come, first served, except that a sequence whose pages or slot are not free is passed by later ones that fit:
    by at most `patience` of them, then all wait for it.
    """

    def __init__(
        self,
        *,
        shards: Ordered[Shard],
        sequences: int,
        tiles: int,
        tile: int,
        page_size: int,
        patience: int = 64,
    ):
        for name, value in (("tiles", tiles), ("sequences", sequences), ("page_size", page_size)):
            if value < 1:
                raise PefxError(f"field '{name}': must be at least 1, got {value}")
        self.shards, self.sequences, self.tiles, self.tile = list(shards), sequences, tiles, tile
        self.page_size, self.patience = page_size, patience
        self.waiting: list[Sequence] = []

    @property
    def running(self) -> list[Sequence]:
        """All that run, on any shard."""
        return [sequence for shard in self.shards for sequence in shard.running]

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.waiting and not any(shard.running for shard in self.shards)

    def check_empty(self) -> None:
        """Raise RuntimeError if a page is still out: called when idle, it finds leaks."""
        for shard in self.shards:
            shard.pages.check_empty()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PefxError (kind "too_long") if no shard could ever hold it."""
        need, room = whole_pages(sequence.length, self.page_size), max(shard.pages.total for shard in self.shards)
        if need > room:
            message = f"{sequence.length} tokens need {need} pages of {self.page_size}, the pool has {room}"
            raise PefxError(message, "too_long")
        if sequence.revision is not None and self.shards[0].residency is None:
            raise PefxError(f"there is no bank to hold {sequence.revision.key}", "unknown_policy")
        self.waiting.append(sequence)

    def admit(self) -> list[Load]:
        """Let waiting sequences in, and say which weights must be loaded before the next `plan` is run.

        A load that fails must be answered with `refuse`, before anything else.
        """
        loads: list[Load] = []
        blocked: list[Sequence] = []
        entered: set[int] = set()
        for sequence in self.waiting:
            full = all(len(shard.running) >= self.sequences for shard in self.shards)
            if full or (blocked and any(other.passed >= self.patience for other in blocked)):
                break
            if not any(self._enter(sequence, index, loads) for index in self._preferred(sequence)):
                blocked.append(sequence)
                continue
            entered.add(id(sequence))
            for other in blocked:
                other.passed += 1
        self.waiting = [sequence for sequence in self.waiting if id(sequence) not in entered]
        return loads

    def _preferred(self, sequence: Sequence) -> list[int]:
        """Shards to try, best first: one that holds the adapter, then the one with the fewest sequences."""

        def rank(index: int) -> tuple[bool, int]:
            shard = self.shards[index]
            held = shard.residency is not None and sequence.revision is not None
            held = held and shard.residency.slot(sequence.revision.key) is not None  # type: ignore[union-attr]
            return not held, len(shard.running)

        return sorted(range(len(self.shards)), key=rank)

    def _enter(self, sequence: Sequence, index: int, loads: list[Load]) -> bool:
        """Let the sequence into a shard, if there is room."""
        shard = self.shards[index]
        need = whole_pages(sequence.length, self.page_size)
        if need > shard.pages.free or len(shard.running) >= self.sequences:
            return False
        if sequence.revision is not None:
            assert shard.residency is not None
            placement = shard.residency.acquire(sequence.revision.key)
            if placement is None:
                return False
            sequence.slot = placement.slot
            if placement.load:
                loads.append(Load(index, placement.slot, sequence.revision))
        sequence.shard, sequence.pages = index, shard.pages.take(need) or ()
        shard.running.append(sequence)
        return True

    def refuse(self, load: Load, error: PefxError) -> list[Sequence]:
        """A load failed: its slot stands for nothing. Returns the sequences that asked for it, over with `error`."""
        shard = self.shards[load.shard]
        assert shard.residency is not None
        hit = [s for s in shard.running if s.revision is not None and s.revision.key == load.revision.key]
        for _ in hit[1:]:
            shard.residency.release(load.revision.key)
        shard.residency.discard(load.revision.key)
        for sequence in hit:
            sequence.error = error
            shard.pages.give_back(sequence.pages)
        shard.running = [sequence for sequence in shard.running if sequence not in hit]
        return hit

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing runs. Every token of a sequence is processed once, in order."""
        sizes = [part for shard in self.shards for part in self._shard_plan(shard)]
        if not sizes:
            return None
        spans = tuple(self._span(sequence, size) for sequence, size in sizes)
        wanted = [row for index, (sequence, size) in enumerate(sizes) for row in _wanted(index, sequence, size)]
        return StepPlan(tuple(sequence for sequence, _ in sizes), spans, tuple(wanted))

    def _shard_plan(self, shard: Shard) -> list[tuple[Sequence, int]]:
        """A shard's sequences in its next step, each with its tokens' count: all that decode, then prompts by age."""
        sizes = [(sequence, 1) for sequence in shard.running if sequence.decoding]
        tiles = self.tiles
        for sequence in shard.running:
            if not sequence.decoding and tiles:
                size = min(len(sequence.prompt) - sequence.done, tiles * self.tile)
                sizes.append((sequence, size))
                tiles -= whole_pages(size, self.tile)
        return sizes

    @staticmethod
    def _span(sequence: Sequence, size: int) -> Span:
        start = sequence.done
        tokens = sequence.generation.tokens[-1:] if sequence.decoding else sequence.prompt[start : start + size]
        return Span(tokens, start, sequence.slot, sequence.pages)

    def commit(self, plan: StepPlan, tokens: Ordered[int], logprobs: Ordered[float]) -> list[Sequence]:
        """Take in a token and a log-probability for each wanted row. Returns the sequences that are now over."""
        for sequence, span in zip(plan.sequences, plan.spans, strict=True):
            sequence.done += len(span.tokens)
        for row, token, logprob in zip(plan.wanted, tokens, logprobs, strict=True):
            _record(plan.sequences[row.span], row, int(token), logprob)
        over = [sequence for sequence in plan.sequences if sequence.over]
        for sequence in over:
            shard = self.shards[sequence.shard]
            shard.running.remove(sequence)
            shard.pages.give_back(sequence.pages)
            if sequence.revision is not None and shard.residency is not None:
                shard.residency.release(sequence.revision.key)
        return over


def _wanted(index: int, sequence: Sequence, size: int) -> list[Wanted]:
    """Rows of a sequence's span: the prompt's next tokens where they are to be scored, and the token to draw."""
    end, prompt = sequence.done + size, sequence.prompt
    rows = []
    if sequence.score_prompt and not sequence.decoding:
        last = min(end, len(prompt) - 1)
        rows = [Wanted(index, i - sequence.done, prompt[i + 1], sequence.sampling) for i in range(sequence.done, last)]
    if end >= len(prompt) and sequence.max_tokens:
        rows.append(Wanted(index, size - 1, SAMPLE, sequence.sampling))
    return rows


def _record(sequence: Sequence, row: Wanted, token: int, logprob: float) -> None:
    if sequence.error is not None:
        return
    if not math.isfinite(logprob):
        name = "the bare base" if sequence.revision is None else f"revision {sequence.revision.key}"
        sequence.error = PefxError(f"{name} gave a log-probability that is no finite number", "not_finite")
    elif row.target == SAMPLE:
        sequence.generation.push(token, logprob)
    else:
        sequence.prompt_logprobs.append(logprob)
