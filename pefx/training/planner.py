"""From examples to the arrays of one training step. Host logic: no jax.

A user's rows are the same whether it trains alone or beside others: every user has a share of `tokens_per_user`
consecutive rows, a multiple of the page, filled from its own stream only. What a share does not use is filled with
rows of the bare base that carry no target, so that the next share starts where it always does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.packing import Span, pack, whole_pages


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
    """The shape of a training step: `shares` shares of `share` tokens, sequences of at most `length` tokens.

    Attention works on tiles of `tile` tokens (`query_tile` of the base); a page holds whole tiles.
    """

    shares: int
    share: int
    length: int
    page_size: int
    tile: int

    def __post_init__(self) -> None:
        if self.page_size < 2 or self.page_size % self.tile:
            raise PefxError(
                f"config field 'page_size' is {self.page_size}; this base needs a multiple of {max(self.tile, 2)}"
            )
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
        """Rows of a step; at least 64, below which gradients would depend on the batch."""
        return max(self.shares * self.share, 64)

    @property
    def sequences(self) -> int:
        return self.tokens // self.page_size

    @property
    def blocks(self) -> int:
        return whole_pages(self.length, self.page_size)


def lay_out(shares: Sequence[Sequence[Lesson]], layout: Layout) -> dict[str, Any]:
    """Fields of a `TrainBatch`: `tokens` (those of a `TokenBatch`), `targets` int32[T], `weights` float32[T].

    `shares[i]` is laid into rows `i * share ..`. Raises PefxError when a share's lessons do not fit it.
    """
    spans: list[Span] = []
    targets = np.full(layout.tokens, -1, np.int32)
    weights = np.zeros(layout.tokens, np.float32)
    for index, lessons in enumerate(shares):
        row = index * layout.share
        end = row + layout.share
        for item in lessons:
            pages = item.pages(layout.page_size)
            if row + pages * layout.page_size > end:
                raise PefxError(f"share {index}: {len(lessons)} sequences do not fit {layout.share} tokens")
            first_page = row // layout.page_size
            spans.append(Span(item.tokens, 0, item.slot, range(first_page, first_page + pages)))
            targets[row : row + len(item.tokens)] = np.where(item.weights > 0, item.targets, -1)
            weights[row : row + len(item.tokens)] = item.weights
            row += pages * layout.page_size
        spans.extend(_filler(row, end, layout) if index + 1 < len(shares) else ())
    fields = pack(
        spans,
        tokens=layout.tokens,
        sequences=layout.sequences,
        blocks=layout.blocks,
        page_size=layout.page_size,
        tile=layout.tile,
        whole=True,
    )
    return {"tokens": fields, "targets": targets, "weights": weights}


def _filler(row: int, end: int, layout: Layout) -> list[Span]:
    """Sequences of the bare base that occupy the pages of rows `row..end`."""
    spans: list[Span] = []
    while row < end:
        pages = min((end - row) // layout.page_size, layout.blocks)
        first_page = row // layout.page_size
        length = pages * layout.page_size
        spans.append(Span(np.zeros(length, np.int32), 0, -1, range(first_page, first_page + pages)))
        row += length
    return spans
