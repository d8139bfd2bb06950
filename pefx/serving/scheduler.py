"""Continuous batching: which tokens of which requests go into the next step. Plain Python, no device, no clock.

A step holds one token of every decoding sequence and, in what is left of its budget, chunks of prompts. Sequences enter
as others leave. A sequence enters once it has a place in the step, pages for its full length and its adapter's slot;
then nothing can take them from it, so it always finishes.
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
    """Weights of `revision` must be in `slot` before the next step."""

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
    """One step: span i belongs to sequence i. At most `step_tokens` tokens and `sequences` spans."""

    sequences: tuple[Sequence, ...]
    spans: tuple[Span, ...]
    wanted: tuple[Wanted, ...]

    @property
    def tokens(self) -> int:
        return sum(len(span.tokens) for span in self.spans)


class Scheduler:
    """`step_tokens` tokens and `sequences` sequences at most in a step; keys and values in `pages`.

    First come, first served, except that a sequence whose pages or slot are not free is passed by later ones that fit:
    by at most `patience` of them, then all wait for it.
    """

    def __init__(
        self,
        *,
        step_tokens: int,
        sequences: int,
        page_size: int,
        pages: PageAllocator,
        residency: Residency | None,
        patience: int = 64,
    ):
        for name, value in (("step_tokens", step_tokens), ("sequences", sequences), ("page_size", page_size)):
            if value < 1:
                raise PefxError(f"field '{name}': must be at least 1, got {value}")
        self.step_tokens, self.sequences, self.page_size = step_tokens, sequences, page_size
        self.pages, self.residency, self.patience = pages, residency, patience
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PefxError (kind "too_long") if the pool could never hold it."""
        need = whole_pages(sequence.length, self.page_size)
        if need > self.pages.total:
            message = f"{sequence.length} tokens need {need} pages of {self.page_size}, the pool has {self.pages.total}"
            raise PefxError(message, "too_long")
        if sequence.revision is not None and self.residency is None:
            raise PefxError(f"there is no bank to hold {sequence.revision.key}", "unknown_policy")
        self.waiting.append(sequence)

    def admit(self) -> list[Load]:
        """Let waiting sequences in, and say which weights must be loaded before the next `plan` is run.

        A load that fails must be answered with `refuse`, before anything else.
        """
        loads: list[Load] = []
        blocked: list[Sequence] = []
        entered: list[Sequence] = []
        for sequence in self.waiting:
            full = len(self.running) + len(entered) >= self.sequences
            if full or (blocked and any(other.passed >= self.patience for other in blocked)):
                break
            if not self._place(sequence, loads):
                blocked.append(sequence)
                continue
            entered.append(sequence)
            for other in blocked:
                other.passed += 1
        self.waiting = [sequence for sequence in self.waiting if sequence not in entered] if entered else self.waiting
        self.running += entered
        return loads

    def _place(self, sequence: Sequence, loads: list[Load]) -> bool:
        need = whole_pages(sequence.length, self.page_size)
        if need > self.pages.free:
            return False
        if sequence.revision is not None:
            assert self.residency is not None
            placement = self.residency.acquire(sequence.revision.key)
            if placement is None:
                return False
            sequence.slot = placement.slot
            if placement.load:
                loads.append(Load(placement.slot, sequence.revision))
        sequence.pages = self.pages.take(need) or ()
        return True

    def refuse(self, load: Load, error: PefxError) -> list[Sequence]:
        """A load failed: its slot stands for nothing. Returns the sequences that asked for it, over with `error`."""
        assert self.residency is not None
        hit = [s for s in self.running if s.revision is not None and s.revision.key == load.revision.key]
        for _ in hit[1:]:
            self.residency.release(load.revision.key)
        self.residency.discard(load.revision.key)
        for sequence in hit:
            sequence.error = error
            self.pages.give_back(sequence.pages)
        self.running = [sequence for sequence in self.running if sequence not in hit]
        return hit

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing runs. Every token of a sequence is processed once, in order."""
        budget = self.step_tokens
        sizes: list[tuple[Sequence, int]] = []
        for sequence in sorted(self.running, key=lambda s: not s.decoding):  # stable: decodes first, then by age
            size = 1 if sequence.decoding else min(len(sequence.prompt) - sequence.done, budget)
            if size > budget or size == 0:
                break
            sizes.append((sequence, size))
            budget -= size
        if not sizes:
            return None
        spans = tuple(self._span(sequence, size) for sequence, size in sizes)
        wanted = [row for index, (sequence, size) in enumerate(sizes) for row in _wanted(index, sequence, size)]
        return StepPlan(tuple(sequence for sequence, _ in sizes), spans, tuple(wanted))

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
            self.running.remove(sequence)
            self.pages.give_back(sequence.pages)
            if sequence.revision is not None and self.residency is not None:
                self.residency.release(sequence.revision.key)
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
