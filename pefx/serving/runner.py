"""The one file of serving that touches the device: plans become arrays of a few shapes, results numpy."""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from kernels.delta_rule.api import close
from pefx.adapters.bank import Bank, load_adapter
from pefx.adapters.methods.table import Adapter
from pefx.adapters.sharded_slots import by_slot
from pefx.batch import Array, KVPool, TokenBatch
from pefx.compiler import jit
from pefx.config import AdapterSpec
from pefx.mesh import by_page, by_row, fetch, made, of_base, place, share
from pefx.model import Base
from pefx.packing import Sizes, beside, pack, span_rows, whole_pages
from pefx.parcel import wrap
from pefx.sampling import Sampling, Shaping
from pefx.serving.generation import Outcome
from pefx.serving.requests import MAX_TOP
from pefx.serving.sequence import Sequence, StepPlan, Wanted
from pefx.serving.shaping import Shaper
from pefx.steps import Drawn, ServePlan, ServeState, serve_step

SMALLEST = 4  # single rows of the smallest step
NAMED = 64  # tokens of a row whose logits are changed, in most cases
NOTHING = Outcome(-1, 0.0)


def buckets(largest: int, smallest: int, apart: int) -> list[int]:
    """Ascending sizes a step is padded to, a factor `apart`: each is compiled once, when first used."""
    sizes = [max(largest, smallest)]
    while sizes[0] // apart >= smallest:
        sizes.insert(0, sizes[0] // apart)
    return sizes


def fit(count: int, sizes: list[int]) -> int:
    """The smallest of `sizes` that holds `count`."""
    return next(size for size in sizes if size >= count)


@dataclass(frozen=True)
class Room:
    """What each of `shards` shards holds: `pages` pages, `sequences` sequences, `tiles` tiles of prompts in a step."""

    shards: int
    pages: int
    page_size: int
    sequences: int
    tiles: int
    tile: int


@dataclass(frozen=True)
class Part:
    """One shard's part of a plan: indices of its wanted rows, and where they stand in the step; indices of its spans,
    and their first rows in the batch.
    """

    wanted: list[int]
    places: list[int]
    spans: list[int]
    rows: list[int]


@dataclass(frozen=True)
class Shape:
    """What a step is compiled for: sizes of a shard's part, whether prompts are scored there, whether anything is
    shaped or the likeliest tokens are told (`rich`), and by how many tokens of a row at most.
    """

    sizes: Sizes
    scoring: bool = False
    rich: bool = False
    named: int = NAMED


class Runner:
    """Base, bank and pool on the device. `bank` None serves the bare base alone. Built within the mesh it runs on.

    A bank that others change, as a training step does, is to be set anew before the next step.
    """

    def __init__(self, base: Base, bank: Bank | None, room: Room):
        config = base.config
        self.vocab_size, self.context = config.vocab_size, config.context
        self._base, self.bank, self._room = place(of_base, base), place(by_slot, bank), room
        pages = room.shards * room.pages
        memory = None if bank is None else bank.memory
        self._state = made(by_page, lambda: ServeState(KVPool.zeros(config, pages, room.page_size, memory)))
        self._blocks = whole_pages(config.context, room.page_size)
        # Padding of a tile costs as much as a tile; that of a single row little.
        self._singles, self._tiles = buckets(room.sequences, SMALLEST, 4), buckets(room.tiles, 1, 2)
        self._named = [NAMED, config.vocab_size]
        self.seconds, self.rows = 0.0, 0  # in steps, and of them, so far

    def load(self, shard: int, slot: int, adapter: Adapter, spec: AdapterSpec) -> None:
        """Put `adapter` into a shard's `slot`. Raises PefxError if it does not fit; then the bank is as it was."""
        if self.bank is None:
            raise RuntimeError("there is no bank to load an adapter into")
        each = self.bank.slots // self._room.shards
        self.bank = load_adapter(self.bank, shard * each + slot, adapter, spec, self._base)

    def begin(self, shard: int, page: int, state: np.ndarray) -> None:
        """A sequence whose first page that is begins with a memory of `state [L, MR, R]`."""
        held = self._state.kv.memory
        assert held is not None
        filled = np.zeros((held.shape[0], *held.shape[3:]), np.float32)
        rank = filled.shape[-1]
        own = state.reshape(len(filled), -1, rank, rank)
        filled[:, : own.shape[1], :rank] = own
        pool = _begun(self._state.kv, *share(of_base, (np.int32(shard * self._room.pages + page), filled)))
        self._state = place(by_page, ServeState(pool))

    def recall(self, where: tuple[int, int], spec: AdapterSpec) -> np.ndarray:
        """The memory `[L, MR, R]` after the last token of a sequence whose last page that is, by shard."""
        shard, page = where
        at = share(of_base, np.int32(shard * self._room.pages + page))
        found = np.asarray(fetch(_recalled(self._state.kv, at)))[:, : spec.states]
        return np.ascontiguousarray(found.reshape(len(found), -1, found.shape[-1]))

    def run(self, plan: StepPlan) -> tuple[list[Outcome], list[np.ndarray | None]]:
        """One step. Returns what came out for each of `plan.wanted`, in order.

        And, where some sequence records them, the routes of each span whose does: uint16 [n, Lm, k]; else nothing.
        """
        arrays, parts = self._arrays(plan, self._shape(plan))
        drawn, routes = self._step(arrays, any(sequence.routes is not None for sequence in plan.sequences))
        return _outcomes(plan, drawn, parts), [] if routes is None else _routes(plan, routes, parts)

    def warm(self) -> None:
        """Compile all that steps need but for rows shaped by more than `NAMED` tokens, so that none waits for it."""
        shapes = [Shape(self._size(singles, 0)) for singles in self._singles]
        prompts = [self._size(self._singles[-1], tiles) for tiles in self._tiles]
        shapes += [Shape(size, scoring) for size in prompts for scoring in (False, True)]
        for shape in shapes:
            for rich in (False, True):
                self._step(self._arrays(StepPlan((), (), ()), replace(shape, rich=rich))[0])

    def _step(self, arrays: ServePlan, recorded: bool = False) -> tuple[Drawn, np.ndarray | None]:
        # An array that a step has to send to the shards itself costs more than the step's own start.
        parcel = place(by_row, wrap(arrays, self._room.shards))
        begun = perf_counter()
        self._state, drawn, routes = serve_step(self._base, self.bank, self._state, parcel)
        drawn, routes = fetch((drawn, routes if recorded else None))
        self.seconds += perf_counter() - begun
        self.rows += arrays.batch.tokens.shape[0]
        return drawn, routes

    def _shape(self, plan: StepPlan) -> Shape:
        """The shape of this step, the same on all shards: few of them, by what it must hold."""
        shapers = [plan.sequences[row.span].shaper for row in plan.wanted if row.target < 0]
        return Shape(
            self._sizes(plan),
            scoring=any(row.target >= 0 for row in plan.wanted),
            # Every combination of what is asked for is a program of its own: so it is all of it, or nothing.
            rich=any(s.shaper is not None or s.top for s in plan.sequences),
            named=fit(max((len(s.entries()) for s in shapers if s is not None), default=0), self._named),
        )

    def _size(self, singles: int, tiles: int) -> Sizes:
        room = self._room
        memory = self._state.kv.memory is not None
        return Sizes(singles, tiles, room.sequences, self._blocks, room.page_size, room.tile, memory)

    def _sizes(self, plan: StepPlan) -> Sizes:
        room = self._room
        singles, tiles = [0] * room.shards, [0] * room.shards
        for sequence, span in zip(plan.sequences, plan.spans, strict=True):
            if len(span.tokens) == 1:
                singles[sequence.shard] += 1
            else:
                tiles[sequence.shard] += whole_pages(len(span.tokens), room.tile)
        if not any(tiles):
            return self._size(fit(max(singles), self._singles), 0)
        # Beside prompts there is always room for all decodes: shapes of tiles times shapes of singles would be many.
        return self._size(self._singles[-1], fit(max(tiles), self._tiles))

    def _arrays(self, plan: StepPlan, shape: Shape) -> tuple[ServePlan, list[Part]]:
        sizes = shape.sizes
        batches, columns, shapings, parts = [], [], [], []
        for shard in range(self._room.shards):
            spans = [i for i, sequence in enumerate(plan.sequences) if sequence.shard == shard]
            own = {index: local for local, index in enumerate(spans)}
            rows = span_rows([plan.spans[i] for i in spans], sizes)
            batches.append(pack([plan.spans[i] for i in spans], sizes, rows))
            wanted = [i for i, row in enumerate(plan.wanted) if row.span in own]
            at = [rows[own[plan.wanted[i].span]] + plan.wanted[i].offset for i in wanted]
            places = _places([plan.wanted[i] for i in wanted], at, sizes)
            count = sizes.singles + shape.scoring * sizes.tiles * sizes.tile
            columns.append(self._columns([plan.wanted[i] for i in wanted], plan.sequences, at, places, count))
            parts.append(Part(wanted, places, spans, rows))
            if shape.rich:
                who = [(p, plan.sequences[plan.wanted[i].span]) for i, p in zip(wanted, places)]
                who = [(p, s.shaper) for p, s in who if s.shaper is not None and p < sizes.singles]
                shapings.append(shaping_arrays(who, sizes.singles, shape.named, self.vocab_size))
        fields: dict[str, Any] = beside(batches)
        column = beside(columns)
        arrays = ServePlan(
            batch=TokenBatch(**fields),
            rows=column.pop("rows"),
            targets=column.pop("targets"),
            how=Sampling(**column),
            singles=sizes.singles,
            shaping=Shaping(**beside(shapings)) if shape.rich else None,
            top=min(MAX_TOP, self.vocab_size) if shape.rich else 0,
        )
        return arrays, parts

    def _columns(
        self, wanted: Ordered[Wanted], sequences: Ordered[Sequence], rows: list[int], places: list[int], count: int
    ) -> dict[str, Any]:
        """Columns of a `ServePlan` by wanted row: single ones, then where prompts are scored all rows of tiles."""

        def column(values: list, fill: int | float, dtype: type) -> np.ndarray:
            filled = np.full(count, fill, dtype)
            filled[places] = values
            return filled

        how = [sequences[row.span].sampling for row in wanted]
        return {
            "rows": column(rows, -1, np.int32),
            "targets": column([row.target for row in wanted], -1, np.int32),
            "temperature": column([h.temperature for h in how], 0, np.float32),
            "top_p": column([h.top_p for h in how], 1, np.float32),
            "min_p": column([h.min_p for h in how], 0, np.float32),
            "top_k": column([min(h.top_k, self.vocab_size) for h in how], 0, np.int32),
            "seed": column([h.seed for h in how], 0, np.uint32),
        }


@partial(jit, donate_argnums=0)
def _begun(pool: KVPool, page: Int32[Array, ""], state: Float[Array, "L M S R"]) -> KVPool:
    assert pool.memory is not None
    return replace(pool, memory=pool.memory.at[:, page, 0].set(state))


@jit
def _recalled(pool: KVPool, page: Int32[Array, ""]) -> Float[Array, "L M R R"]:
    assert pool.memory is not None
    return close(pool.memory[:, page, 1])


def shaping_arrays(
    shapers: Ordered[tuple[int, Shaper]], rows: int, width: int, vocab_size: int
) -> dict[str, np.ndarray]:
    """Fields of a `pefx.sampling.Shaping` of `rows` rows, of which those named are shaped, each by `width` tokens."""
    fields = {
        "tokens": np.full((rows, width), -1, np.int32),
        "repeat": np.ones((rows, width), np.float32),
        "add": np.zeros((rows, width), np.float32),
        "allowed": np.full((rows, whole_pages(vocab_size, 32)), np.uint32(2**32 - 1)),
    }
    for row, shaper in shapers:
        entries, mask = shaper.entries(), shaper.mask
        if entries:
            for name, values in zip(("tokens", "repeat", "add"), zip(*entries), strict=True):
                fields[name][row, : len(entries)] = values
        if mask is not None:
            fields["allowed"][row] = mask
    return fields


def _outcomes(plan: StepPlan, drawn: Drawn, parts: list[Part]) -> list[Outcome]:
    """What was drawn, in the order of `plan.wanted`."""
    outcomes = [NOTHING] * len(plan.wanted)
    tokens, logprobs, top_tokens, top_logprobs = (
        x.reshape(len(parts), x.shape[0] // len(parts), *x.shape[1:])
        for x in (drawn.tokens, drawn.logprobs, drawn.top_tokens, drawn.top_logprobs)
    )
    for shard, part in enumerate(parts):
        own_tokens, own_logprobs = tokens[shard].tolist(), logprobs[shard].tolist()
        for index, at in zip(part.wanted, part.places, strict=True):
            top = ()
            if plan.sequences[plan.wanted[index].span].top:
                top = tuple(zip(top_tokens[shard, at].tolist(), top_logprobs[shard, at].tolist(), strict=True))
            outcomes[index] = Outcome(own_tokens[at], own_logprobs[at], top)
    return outcomes


def _routes(plan: StepPlan, routes: np.ndarray, parts: list[Part]) -> list[np.ndarray | None]:
    """Of each span whose sequence records them, from those of all rows, int32 [Lm, T, k]."""
    taken: list[np.ndarray | None] = [None] * len(plan.spans)
    size = routes.shape[1] // len(parts)
    for shard, part in enumerate(parts):
        for index, row in zip(part.spans, part.rows, strict=True):
            if plan.sequences[index].routes is not None:
                at = shard * size + row
                own = routes[:, at : at + len(plan.spans[index].tokens)]
                taken[index] = own.swapaxes(0, 1).astype(np.uint16)
    return taken


def _places(wanted: Ordered[Wanted], rows: list[int], sizes: Sizes) -> list[int]:
    """Where each wanted row stands among those of its shard: drawn ones as they come, scored ones as in the batch.

    A span has one drawn row at most, so they fit the single rows; a scored row of a single is single too.
    """
    places, next_single = [], 0
    for row, at in zip(wanted, rows, strict=True):
        if row.target >= 0 and at >= sizes.singles:
            places.append(at)
        else:
            places.append(next_single)
            next_single += 1
    return places
