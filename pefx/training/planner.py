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


@dataclass(frozen=True)
class Lesson:
    """One sequence to learn from: int32[n] tokens, int32[n] targets (the token after each), float32[n] weights.

    A weight of 0 leaves a target out of the loss. `slot` is the index of its adapter among those of the step.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    slot: int

    def pages(self, page_size: int) -> int:
        """Pages that the sequence occupies."""
        return whole_pages(len(self.tokens), page_size)


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

    Sequences have at most `length` tokens and begin on a page.
    """

    shares: int
    share: int
    length: int
    page_size: int
    shards: int = 1

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
        return Sizes(0, self.tokens // tile, self.tokens // self.page_size, blocks, self.page_size, tile)


def lay_out(shards: Sequence[Sequence[Sequence[Lesson]]], layout: Layout) -> dict[str, Any]:
    """Fields of a `TrainBatch`: `tokens` (those of a `TokenBatch`), `targets` int32[T], `weights` float32[T].

    `shards[s][i]` is laid into rows `i * share ..` of shard s, what it does not fill stays empty. Raises PefxError when
    the lessons of a share do not fit it.
    """
    parts = [_shard(shares, layout) for shares in shards]
    columns = beside([{name: part[name] for name in ("targets", "weights")} for part in parts])
    return {"tokens": beside([part["tokens"] for part in parts]), **columns}


def _shard(shares: Sequence[Sequence[Lesson]], layout: Layout) -> dict[str, Any]:
    """One shard's part of `lay_out`."""
    spans: list[Span] = []
    rows: list[int] = []
    targets = np.full(layout.tokens, -1, np.int32)
    weights = np.zeros(layout.tokens, np.float32)
    for index, lessons in enumerate(shares):
        row, end = index * layout.share, (index + 1) * layout.share
        for item in lessons:
            pages = item.pages(layout.page_size)
            if row + pages * layout.page_size > end:
                raise PefxError(f"share {index}: {len(lessons)} sequences do not fit {layout.share} tokens")
            first_page = row // layout.page_size
            spans.append(Span(item.tokens, 0, item.slot, range(first_page, first_page + pages)))
            rows.append(row)
            targets[row : row + len(item.tokens)] = np.where(item.weights > 0, item.targets, -1)
            weights[row : row + len(item.tokens)] = item.weights
            row += pages * layout.page_size
    return {"tokens": pack(spans, layout.sizes, rows), "targets": targets, "weights": weights}
