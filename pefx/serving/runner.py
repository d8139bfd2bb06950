"""The one file of serving that touches the device: plans become arrays of a few shapes, results numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.adapters.bank import Bank, by_slot, load_adapter
from pefx.adapters.methods import Adapter
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec
from pefx.mesh import by_page, by_row, fetch, made, of_base, place
from pefx.model import Base
from pefx.packing import Sizes, beside, pack, span_rows, whole_pages
from pefx.parcel import wrap
from pefx.serving.scheduler import StepPlan, Wanted
from pefx.steps import ServePlan, ServeState, serve_step

SMALLEST = 4  # single rows of the smallest step


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
    """One shard's part of a plan: indices of its spans and wanted rows, and where the latter stand in the step."""

    spans: list[int]
    wanted: list[int]
    places: list[int]


class Runner:
    """Base, bank and pool on the device. `bank` None serves the bare base alone. Built within the mesh it runs on."""

    def __init__(self, base: Base, bank: Bank | None, room: Room):
        config = base.config
        self._base, self._bank, self._room = place(of_base, base), place(by_slot, bank), room
        pages = room.shards * room.pages
        self._state = made(by_page, lambda: ServeState(KVPool.zeros(config, pages, room.page_size)))
        self._blocks = whole_pages(config.context, room.page_size)
        # Padding of a tile costs as much as a tile; that of a single row little.
        self._singles, self._tiles = buckets(room.sequences, SMALLEST, 4), buckets(room.tiles, 1, 2)

    @property
    def vocab_size(self) -> int:
        return self._base.config.vocab_size

    @property
    def context(self) -> int:
        return self._base.config.context

    def load(self, shard: int, slot: int, adapter: Adapter, spec: AdapterSpec) -> None:
        """Put `adapter` into a shard's `slot`. Raises PefxError if it does not fit; then the bank is as it was."""
        if self._bank is None:
            raise RuntimeError("there is no bank to load an adapter into")
        each = self._bank.slots // self._room.shards
        self._bank = load_adapter(self._bank, shard * each + slot, adapter, spec)

    def run(self, plan: StepPlan) -> tuple[list[int], list[float]]:
        """One step. Returns the token and the log-probability (nats, a float32) of each of `plan.wanted`, in order."""
        arrays, parts = self._arrays(plan)
        # An array that a step has to send to the shards itself costs more than the step's own start.
        parcel = place(by_row, wrap(arrays, self._room.shards))
        self._state, tokens, logprobs, _routes = serve_step(self._base, self._bank, self._state, parcel)
        tokens, logprobs = (x.reshape(len(parts), -1) for x in fetch((tokens, logprobs)))
        drawn: list[int] = [0] * len(plan.wanted)
        scores: list[float] = [0.0] * len(plan.wanted)
        for shard, part in enumerate(parts):
            for index, at in zip(part.wanted, part.places, strict=True):
                drawn[index], scores[index] = int(tokens[shard, at]), float(logprobs[shard, at])
        return drawn, scores

    def _sizes(self, plan: StepPlan) -> Sizes:
        """The shape of this step, the same on all shards: few of them, by what it must hold."""
        room = self._room
        singles, tiles = [0] * room.shards, [0] * room.shards
        for sequence, span in zip(plan.sequences, plan.spans, strict=True):
            if len(span.tokens) == 1:
                singles[sequence.shard] += 1
            else:
                tiles[sequence.shard] += whole_pages(len(span.tokens), room.tile)
        if not any(tiles):
            return Sizes(fit(max(singles), self._singles), 0, room.sequences, self._blocks, room.page_size, room.tile)
        # Beside prompts there is always room for all decodes: shapes of tiles times shapes of singles would be many.
        count = fit(max(tiles), self._tiles)
        return Sizes(self._singles[-1], count, room.sequences, self._blocks, room.page_size, room.tile)

    def _arrays(self, plan: StepPlan) -> tuple[ServePlan, list[Part]]:
        sizes = self._sizes(plan)
        scoring = any(row.target >= 0 for row in plan.wanted)
        batches, columns, parts = [], [], []
        for shard in range(self._room.shards):
            spans = [i for i, sequence in enumerate(plan.sequences) if sequence.shard == shard]
            own = {index: local for local, index in enumerate(spans)}
            rows = span_rows([plan.spans[i] for i in spans], sizes)
            batches.append(pack([plan.spans[i] for i in spans], sizes, rows))
            wanted = [i for i, row in enumerate(plan.wanted) if row.span in own]
            at = [rows[own[plan.wanted[i].span]] + plan.wanted[i].offset for i in wanted]
            places = _places([plan.wanted[i] for i in wanted], at, sizes)
            columns.append(self._columns([plan.wanted[i] for i in wanted], at, places, sizes, scoring))
            parts.append(Part(spans, wanted, places))
        fields: dict[str, Any] = beside(batches)
        return ServePlan(batch=TokenBatch(**fields), singles=sizes.singles, **beside(columns)), parts

    def _columns(
        self, wanted: Sequence[Wanted], rows: list[int], places: list[int], sizes: Sizes, scoring: bool
    ) -> dict[str, Any]:
        """The fields of a `ServePlan` by wanted row: single ones, then where prompts are scored all rows of tiles."""
        count = sizes.singles + scoring * sizes.tiles * sizes.tile

        def column(values: list, fill: int | float, dtype: type) -> np.ndarray:
            filled = np.full(count, fill, dtype)
            filled[places] = values
            return filled

        how = [row.sampling for row in wanted]
        return {
            "rows": column(rows, -1, np.int32),
            "targets": column([row.target for row in wanted], -1, np.int32),
            "temperature": column([h.temperature for h in how], 0, np.float32),
            "top_p": column([h.top_p for h in how], 1, np.float32),
            "top_k": column([min(h.top_k, self.vocab_size) for h in how], 0, np.int32),
            "seed": column([h.seed for h in how], 0, np.uint32),
        }


def _places(wanted: Sequence[Wanted], rows: list[int], sizes: Sizes) -> list[int]:
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
