"""From examples to the arrays of one training step. Host logic: no jax.

A user's rows are the same whether it trains alone or beside others: every user has a share of `tokens_per_user`
consecutive rows, a multiple of the page, filled from its own stream only. What a share does not use stays empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.packing import Sizes, Span, beside, pack, tile_of, whole_pages


@dataclass(frozen=True, eq=False)
class Terms:
    """What losses of the table read of each target beside its weight: float32[n] advantage, log-probability under the
    old policy and under the base (nats). `routes` are int32[n, Lm, k], of the tokens that are read (-1: live).
    `partner` is the lesson that it is paired with, by its place among those of the share.
    """

    advantages: np.ndarray
    old_logprobs: np.ndarray
    reference_logprobs: np.ndarray
    routes: np.ndarray | None = None
    partner: int = -1


@dataclass(frozen=True, eq=False)
class Lesson:
    """One sequence to learn from: int32[n] tokens, int32[n] targets (the token after each), float32[n] weights.

    A weight of 0 leaves a target out of the loss; a target of -1 is none. `slot` is its adapter's index among those of
    the step. `memory` says what each token does to the memory, int32[n] of `pefx.packing` (None: nothing); `before` are
    sequences whose memory it goes on with, of which nothing is learned.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    slot: int
    terms: Terms | None = None
    memory: np.ndarray | None = None
    before: tuple["Lesson", ...] = ()

    def pages(self, page_size: int) -> int:
        """Pages that it occupies, with what is before it."""
        return whole_pages(len(self.tokens), page_size) + self.pages_before(page_size)

    def pages_before(self, page_size: int) -> int:
        """Pages of what is before it."""
        return sum(item.pages(page_size) for item in self.before)


def lesson(tokens: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, slot: int) -> Lesson:
    """A lesson from a whole sequence: token i is predicted from those before it, with `weights[i]` in the loss.

    The last token is a target only; the weight of the first is not used.
    """
    ids = np.asarray(tokens, np.int32)
    if len(ids) < 2 or len(ids) != len(weights):
        raise ValueError(f"a lesson needs at least two tokens and a weight for each, got {len(ids)} and {len(weights)}")
    return Lesson(ids[:-1], ids[1:], np.asarray(weights, np.float32)[1:], slot)


@dataclass(frozen=True)
class Layout:
    """The shape of a training step: on each of `shards` shards `shares` shares of `share` tokens.

    Sequences have at most `length` tokens and begin on a page. `terms`: losses of the table are learned from; `routes`
    are the layers with experts and the experts of a token, where recorded ones are taken again. `memory`: some adapter
    has memories.
    """

    shares: int
    share: int
    length: int
    page_size: int
    shards: int = 1
    terms: bool = False
    routes: tuple[int, int] | None = None
    memory: bool = False

    def __post_init__(self) -> None:
        tile_of(self.page_size)
        if self.share % self.page_size or self.share < self.page_size:
            raise PefxError(
                f"{self.share} tokens per user and step do not divide into pages of {self.page_size}; "
                "data.tokens_per_user (pretrain.batch_tokens) must be a multiple of page_size"
            )
        if self.length > self.share:
            raise PefxError(
                f"data.sequence_length is {self.length}, longer than a step's share of {self.share} tokens; "
                "lower it or raise data.tokens_per_user (pretrain.batch_tokens)"
            )

    @property
    def tokens(self) -> int:
        """Rows of a shard's step; at least 64, below which gradients would depend on the batch."""
        return max(self.shares * self.share, 64)

    @property
    def sizes(self) -> Sizes:
        """What a shard's part of a batch is packed to."""
        tile = tile_of(self.page_size)
        blocks = whole_pages(self.length, self.page_size)
        sequences = self.tokens // self.page_size
        return Sizes(0, self.tokens // tile, sequences, blocks, self.page_size, tile, self.memory)


def lay_out(shards: Sequence[Sequence[Sequence[Lesson]]], layout: Layout) -> dict[str, Any]:
    """Fields of a `TrainBatch`: `tokens` (those of a `TokenBatch`), `targets` int32[T], `weights` float32[T]; where the
    layout says so, `policy` (those of a `PolicyTerms`) and `routes` int32[T, Lm, k].

    `shards[s][i]` is laid into rows `i * share ..` of shard s, what it does not fill stays empty. Raises PefxError when
    the lessons of a share do not fit it.
    """
    parts = [_shard(shares, layout) for shares in shards]
    fields = {"tokens": beside([tokens for tokens, _ in parts]), **beside([columns for _, columns in parts])}
    if layout.terms:
        fields["policy"] = {name: fields.pop(name) for name in ("partners", *TERMS)}
    return fields


TERMS = ("advantages", "old_logprobs", "reference_logprobs")


def _shard(shares: Sequence[Sequence[Lesson]], layout: Layout) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One shard's part of `lay_out`: its tokens, and its columns."""
    spans: list[Span] = []
    rows: list[int] = []
    columns = _empty(layout)
    for index, lessons in enumerate(shares):
        row, end, first = index * layout.share, (index + 1) * layout.share, len(spans)
        for item in lessons:
            if row + item.pages(layout.page_size) * layout.page_size > end:
                raise PefxError(f"share {index}: {len(lessons)} sequences do not fit {layout.share} tokens")
            for piece in (*item.before, item):
                pages, first_page = whole_pages(len(piece.tokens), layout.page_size), row // layout.page_size
                if layout.terms and piece.terms is not None and piece.terms.partner >= 0:
                    columns["partners"][len(spans)] = first + piece.terms.partner
                held = range(first_page, first_page + pages)
                spans.append(Span(piece.tokens, 0, item.slot, held, piece.memory))
                rows.append(row)
                _put(columns, slice(row, row + len(piece.tokens)), piece)
                row += pages * layout.page_size
    return pack(spans, layout.sizes, rows), columns


def _empty(layout: Layout) -> dict[str, np.ndarray]:
    """Columns of rows that hold nothing."""
    columns = {"targets": np.full(layout.tokens, -1, np.int32), "weights": np.zeros(layout.tokens, np.float32)}
    if layout.terms:
        columns["partners"] = np.full(layout.sizes.sequences, -1, np.int32)
        columns |= {name: np.zeros(layout.tokens, np.float32) for name in TERMS}
    if layout.routes is not None:
        columns["routes"] = np.full((layout.tokens, *layout.routes), -1, np.int32)
    return columns


def _put(columns: dict[str, np.ndarray], here: slice, item: Lesson) -> None:
    """A lesson's numbers into its rows."""
    columns["weights"][here] = item.weights
    if item.terms is None:
        columns["targets"][here] = np.where(item.weights > 0, item.targets, -1)
        return
    columns["targets"][here] = item.targets
    for name in TERMS:
        if name in columns:
            columns[name][here] = getattr(item.terms, name)
    if "routes" in columns and item.terms.routes is not None:
        columns["routes"][here] = item.terms.routes
