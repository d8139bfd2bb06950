"""Continuous batching: which tokens of which sequences go into the next step. Plain Python, no device, no clock.

A step holds one token of every sequence that decodes, and chunks of prompts in whole tiles. A sequence enters a shard
once it has a place in its step, pages for the tokens that are known and its adapter's slot. Pages for its answer are
taken as it grows; where none is left, the sequence that would miss it least gives up its pages and is computed again
later, to the same bits (law 2).
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.packing import Span, whole_pages
from pefx.serving.fair_queue import FairQueue, Queue
from pefx.serving.generation import Outcome
from pefx.serving.pages import PageAllocator
from pefx.serving.recording import record, wanted_rows
from pefx.serving.sequence import SAMPLE, Load, Sequence, StepPlan
from pefx.store.residency import Slots

Ready = Callable[[Any], bool]


@dataclass
class Shard:
    """One shard of the mesh's `data` axis: its pages, its slots (None: no bank), the sequences that run on it."""

    pages: PageAllocator
    residency: Slots | None
    running: list[Sequence] = field(default_factory=list)
    spoken_for: int = 0  # tiles of the next step that prompts of those that run fill


@dataclass
class Wanting:
    """A revision, and how many sequences wait that need it."""

    revision: Any
    count: int = 0


@dataclass(frozen=True)
class StepSize:
    """What a step holds on each shard: `sequences` sequences, and `tiles` tiles of `tile` tokens for their prompts.

    PefxError for sizes below 1.
    """

    sequences: int
    tiles: int
    tile: int
    page_size: int

    def __post_init__(self):
        for name in ("tiles", "sequences", "page_size"):
            if getattr(self, name) < 1:
                raise PefxError(f"field '{name}': must be at least 1, got {getattr(self, name)}")


class Scheduler:
    """Sequences that wait in `queue` enter `shards` in the order of their turns. A few places of a shard are kept for
    newcomers, whose prompts are computed before those of who has had more: nobody waits behind another's flood.

    One whose pages or slot are not free is passed by later ones that fit: by at most `patience` of them, then all wait
    for it. One whose adapter is not `ready` is passed by any number.
    """

    def __init__(self, *, shards: Ordered[Shard], size: StepSize, queue: Queue | None = None, patience: int = 64):
        self.shards, self.size, self.patience = list(shards), size, patience
        self.waiting: Queue = FairQueue() if queue is None else queue
        self.wanted: dict[str, Wanting] = {}  # by key: revisions that waiting sequences need, in order of the first
        self.preemptions = 0
        self.begun: list[Sequence] = []  # whose memory is to begin with a state, before the next plan is run
        self._arrivals = 0

    @property
    def running(self) -> list[Sequence]:
        """All that run, on any shard."""
        return [sequence for shard in self.shards for sequence in shard.running]

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not len(self.waiting) and not any(shard.running for shard in self.shards)

    @property
    def seats(self) -> int:
        """Sequences that can run at once."""
        return self.size.sequences * len(self.shards)

    def check_empty(self) -> None:
        """Raise RuntimeError if a page is still held: called when idle, it finds leaks."""
        for shard in self.shards:
            shard.pages.check_empty()

    def resident(self, revision: Any) -> bool:
        """Whether a slot of some shard holds `revision`."""
        held = (shard.residency for shard in self.shards if shard.residency is not None)
        return any(residency.slot(revision.key) is not None for residency in held)

    @property
    def largest(self) -> int:
        """Pages of the shard that has most."""
        return max(shard.pages.total for shard in self.shards)

    def fits(self, sequence: Sequence) -> bool:
        """Whether some shard's pages could hold all of it."""
        return self._pages(sequence.length) <= self.largest

    def check(self, sequence: Sequence) -> None:
        """Raise PefxError (kind "too_long", "unknown_policy") if no shard could ever hold it."""
        if not self.fits(sequence):
            need = f"{sequence.length} tokens need {self._pages(sequence.length)} pages of {self.size.page_size}"
            raise PefxError(f"{need}, the pool has {self.largest}", "too_long")
        if sequence.revision is not None and self.shards[0].residency is None:
            raise PefxError(f"there is no bank to hold {sequence.revision.key}", "unknown_policy")

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PefxError as `check`."""
        self.check(sequence)
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.push(sequence)
        self._waits(sequence)

    def _waits(self, sequence: Sequence) -> None:
        for revision in sequence.needs:
            self.wanted.setdefault(revision.key, Wanting(revision)).count += 1

    def _waits_no_more(self, sequence: Sequence) -> None:
        for revision in sequence.needs:
            wanting = self.wanted[revision.key]
            wanting.count -= 1
            if not wanting.count:
                del self.wanted[revision.key]

    def cancel(self, sequence: Sequence) -> None:
        """It is gone at once, whether it waits or runs. One that is over stays as it is."""
        if sequence.ended:
            return
        sequence.ended = True
        if sequence.shard < 0:
            self.waiting.remove(sequence)
            self._waits_no_more(sequence)
        else:
            self._leave(sequence)
            self.waiting.leave(sequence)

    def admit(self, ready: Ready = lambda revision: True) -> list[Load]:
        """Let waiting sequences in, and say which weights must be loaded before the next `plan` is run.

        `ready` tells whether a revision that is in no slot can be loaded now. A load that fails must be answered with
        `refuse`, before anything else.
        """
        loads: list[Load] = []
        blocked: list[Sequence] = []
        for shard in self.shards:
            shard.spoken_for = sum(whole_pages(s.left, self.size.tile) for s in shard.running if s.left > 1)
        for sequence in self.waiting.turns(self.resident, self._crowded) if len(self.waiting) else ():
            if self._full() or any(other.passed >= self.patience for other in blocked):
                break
            if self._behind(sequence) or not all(self.resident(one) or ready(one) for one in sequence.needs):
                continue
            if not any(self._enter(sequence, index, loads) for index in self._preferred(sequence)):
                blocked.append(sequence)
                continue
            for other in blocked:
                other.passed += 1
        return loads

    def _full(self) -> bool:
        """Whether nobody at all can enter."""
        return all(len(shard.running) >= self.size.sequences for shard in self.shards)

    def _crowded(self) -> bool:
        """Whether only newcomers can enter."""
        return not any(self._open(shard, newcomer=False) for shard in self.shards)

    def _open(self, shard: Shard, newcomer: bool) -> bool:
        """Whether one more can enter, and would not only wait there: a newcomer's prompt is computed before others'."""
        if newcomer:
            return len(shard.running) < self.size.sequences
        places = self.size.sequences - self.waiting.kept(self.size.sequences)
        return len(shard.running) < places and shard.spoken_for < self.size.tiles

    def _preferred(self, sequence: Sequence) -> list[int]:
        """Shards to try, best first: one that holds the adapter, then the one with the fewest sequences."""
        if len(self.shards) == 1:
            return [0]

        def rank(index: int) -> tuple[bool, int]:
            shard = self.shards[index]
            held = shard.residency is not None and sequence.revision is not None
            held = held and shard.residency.slot(sequence.revision.key) is not None  # type: ignore[union-attr]
            return not held, len(shard.running)

        return sorted(range(len(self.shards)), key=rank)

    def _behind(self, sequence: Sequence) -> bool:
        """Whether its leader has yet to bring the prompt that they share, if it fills a page, into the pool."""
        leader = sequence.leader
        if leader is None or len(sequence.prompt) <= self.size.page_size:
            return False
        return not leader.generation.tokens and not leader.ended

    def _enter(self, sequence: Sequence, index: int, loads: list[Load]) -> bool:
        """Let the sequence into a shard, if there is room."""
        shard, need = self.shards[index], self._pages(sequence.known)
        held, revision = shard.residency, sequence.revision
        # Before pages are taken: that may cost others theirs.
        room = revision is None or (held is not None and held.room(revision.key))
        wanted = room and self._open(shard, self.waiting.newcomer(sequence))
        if not wanted or not self._take_pages(sequence, shard, need):
            return False
        if revision is not None:
            assert held is not None
            placement = held.acquire(revision.key)
            assert placement is not None
            sequence.slot = placement.slot
            if placement.load:
                loads.append(Load(index, placement.slot, revision))
        if sequence.memory is not None and sequence.memory.state is not None and not sequence.done:
            self.begun.append(sequence)
        if not sequence.entered:
            sequence.cached = sequence.done
        self.waiting.enter(sequence, 0 if sequence.entered else sequence.left)
        self._waits_no_more(sequence)
        sequence.shard, sequence.entered = index, True
        shard.spoken_for += whole_pages(sequence.left, self.size.tile) if sequence.left > 1 else 0
        shard.running.append(sequence)
        return True

    def _take_pages(self, sequence: Sequence, shard: Shard, need: int) -> bool:
        """Pages for all known tokens: first those that hold such tokens already, one token at least is left to do."""
        size, again, routes = self.size.page_size, sequence.generation.tokens, sequence.routes
        found, node = [], sequence.root
        if not sequence.score_prompt or again:
            # Pages whose routes nobody wanted are computed again where somebody wants them.
            known = sequence.tokens(0, sequence.shared(sequence.known - 1))
            found, node = shard.pages.find(sequence.root, known, size, noted=routes is not None)
        # A page more than is needed now stays free for those that run, unless nobody does.
        spare = 1 if shard.running and sequence.length > sequence.known else 0
        new = shard.pages.take(need - len(found)) if shard.pages.free >= need - len(found) + spare else None
        if new is None:
            shard.pages.give_back(found)
            return False
        sequence.pages, sequence.node, sequence.published = found + new, node, len(found)
        sequence.done = len(found) * size
        if routes is not None:
            for index, page in enumerate(found):
                routes.put(index * size, shard.pages.note(page))
        return True

    def _pages(self, tokens: int) -> int:
        return whole_pages(tokens, self.size.page_size)

    def refuse(self, load: Load, error: PefxError) -> list[Sequence]:
        """A load failed: its slot stands for nothing. Returns the sequences that asked for it, over with `error`."""
        shard = self.shards[load.shard]
        assert shard.residency is not None
        hit = [s for s in shard.running if s.revision is not None and s.revision.key == load.revision.key]
        for sequence in hit:
            sequence.error, sequence.ended = error, True
            shard.pages.give_back(sequence.pages)
            if sequence is not hit[0]:
                shard.residency.release(load.revision.key)
            self.waiting.leave(sequence)
        shard.residency.discard(load.revision.key)
        shard.running = [sequence for sequence in shard.running if sequence not in hit]
        return hit

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing runs. Every token of a sequence is processed once, in order."""
        sizes = [part for shard in self.shards for part in self._shard_plan(shard)]
        if not sizes:
            return None
        spans = tuple(
            Span(
                sequence.tokens(sequence.done, sequence.done + size),
                sequence.done,
                sequence.slot,
                sequence.pages,
                None if sequence.memory is None else sequence.memory.flags(sequence.done, sequence.done + size),
            )
            for sequence, size in sizes
        )
        wanted = [row for index, (sequence, size) in enumerate(sizes) for row in wanted_rows(index, sequence, size)]
        return StepPlan(tuple(sequence for sequence, _ in sizes), spans, tuple(wanted))

    def _shard_plan(self, shard: Shard) -> list[tuple[Sequence, int]]:
        """A shard's sequences in its next step, each with its tokens' count: all that decode, then prompts in turn."""
        for sequence in list(shard.running):
            self._grow(sequence, shard)
        sizes = [(sequence, 1) for sequence in shard.running if sequence.left == 1]
        tiles = self.size.tiles
        for sequence in self.waiting.order([sequence for sequence in shard.running if sequence.left > 1]):
            if tiles:
                size = min(sequence.left, tiles * self.size.tile)
                sizes.append((sequence, size))
                tiles -= whole_pages(size, self.size.tile)
        return sizes

    def _grow(self, sequence: Sequence, shard: Shard) -> None:
        """A page for the token that comes next. Where none is free, who comes last gives up its own."""
        while sequence.shard >= 0 and len(sequence.pages) * self.size.page_size < sequence.known:
            page = shard.pages.take(1)
            if page is None:
                self._preempt(max(shard.running, key=lambda other: (-other.priority, other.arrival)))
            else:
                sequence.pages += page

    def _preempt(self, sequence: Sequence) -> None:
        """It gives up its place, and waits to be computed again."""
        self.preemptions += 1
        self._leave(sequence)
        self.waiting.push_back(sequence)
        self._waits(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """It gives up its place, its pages and its hold on its slot."""
        shard = self.shards[sequence.shard]
        shard.running.remove(sequence)
        if sequence.error is not None:
            shard.pages.withdraw(sequence.pages)
        shard.pages.give_back(sequence.pages)
        if sequence.revision is not None and shard.residency is not None:
            shard.residency.release(sequence.revision.key)
        sequence.shard, sequence.slot, sequence.pages, sequence.done = -1, -1, [], 0

    def commit(
        self, plan: StepPlan, outcomes: Ordered[Outcome], routes: Ordered[np.ndarray | None] = ()
    ) -> list[Sequence]:
        """Take in what came out for each wanted row, and the routes of each span. Returns the sequences now over."""
        for sequence, taken in zip(plan.sequences, routes):
            if sequence.routes is not None and taken is not None:
                sequence.routes.put(sequence.done, taken)
        for sequence, span in zip(plan.sequences, plan.spans, strict=True):
            sequence.done += len(span.tokens)
            self._publish(sequence)
        for row, outcome in zip(plan.wanted, outcomes, strict=True):
            sequence = plan.sequences[row.span]
            record(sequence, row, outcome)
            if row.target == SAMPLE:
                self.waiting.charge(sequence, 1)
        over = [sequence for sequence in plan.sequences if sequence.over]
        for sequence in over:
            if sequence.memory is not None:
                sequence.memory.place = sequence.shard, sequence.pages[(sequence.done - 1) // self.size.page_size]
            self._end(sequence)
        return over

    def fail(self, sequence: Sequence, error: PefxError) -> None:
        """A sequence that runs is over with an error."""
        sequence.error = error
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._leave(sequence)
        self.waiting.leave(sequence)

    def _publish(self, sequence: Sequence) -> None:
        """Let others find the pages that are full now."""
        size = self.size.page_size
        while (sequence.published + 1) * size <= sequence.shared(sequence.done):
            start = sequence.published * size
            pages, tokens = self.shards[sequence.shard].pages, sequence.tokens(start, start + size)
            note = None if sequence.routes is None else sequence.routes.of(start, start + size)
            sequence.node = pages.publish(sequence.pages[sequence.published], sequence.node, tokens, note)
            sequence.published += 1
