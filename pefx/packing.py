"""From spans of sequences to the flat batch a step reads. Numpy only: the host decides, the device computes.

Training and serving lay out tokens with this one function; they differ in the spans they pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.errors import PefxError


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence in this step, `start` the position of the first.

    `pages` are the pool pages of the sequence's blocks from position 0 on, at least as far as this span reaches.
    """

    tokens: Sequence[int] | np.ndarray
    start: int
    slot: int
    pages: Sequence[int]


def whole_pages(length: int, page_size: int) -> int:
    """Pages that `length` tokens occupy."""
    return -(-length // page_size)


def span_rows(spans: Sequence[Span], page_size: int, whole: bool) -> list[int]:
    """First batch row of each span. Whole sequences (training) each begin on a page boundary."""
    rows, at = [], 0
    for span in spans:
        rows.append(at)
        size = len(span.tokens)
        at += whole_pages(size, page_size) * page_size if whole else size
    return rows


def pack(
    spans: Sequence[Span], *, tokens: int, sequences: int, blocks: int, page_size: int, tile: int, whole: bool = False
) -> dict[str, Any]:
    """Fields of a `TokenBatch` at exactly these sizes: T = tokens, S = sequences, PS = blocks, Q = tile.

    Span i is sequence i. `whole=True` is the training layout: every span is a whole sequence (start 0) on a page
    boundary; only then do gradients exist. Raises PefxError where the spans do not fit.
    """
    first_rows = span_rows(spans, page_size, whole)
    used = first_rows[-1] + len(spans[-1].tokens) if spans else 0
    if used > tokens or len(spans) > sequences:
        raise PefxError(f"{len(spans)} spans of {used} tokens do not fit a step of {sequences} and {tokens}")
    if whole and page_size % tile:
        raise PefxError(f"pages of {page_size} tokens do not hold whole tiles of {tile}, as whole sequences need")
    tile_count = tokens // tile if whole else min(tokens, tokens // tile + sequences)
    batch: dict[str, Any] = {
        "tokens": np.zeros(tokens, np.int32),
        "positions": np.full(tokens, -1, np.int32),
        "slots": np.full(tokens, -1, np.int32),
        "sequences": np.zeros(tokens, np.int32),
        "rows": np.full((tile_count, tile), -1, np.int32),
        "tile_sequence": np.full(tile_count, sequences - 1, np.int32),
        "place": np.full(tokens, tile_count * tile, np.int32),
        "pages": np.full((sequences, blocks), -1, np.int32),
        "lengths": np.zeros(sequences, np.int32),
        "page_size": page_size,
    }
    next_tile = 0
    for index, (span, row) in enumerate(zip(spans, first_rows, strict=True)):
        size = len(span.tokens)
        end = span.start + size
        if whole and span.start:
            raise PefxError(f"span {index} starts at {span.start}: a whole sequence starts at 0")
        if size == 0 or whole_pages(end, page_size) > min(len(span.pages), blocks):
            raise PefxError(f"span {index} of {size} tokens to position {end} lacks pages ({len(span.pages)} given)")
        here = slice(row, row + size)
        batch["tokens"][here] = span.tokens
        batch["positions"][here] = np.arange(span.start, end)
        batch["slots"][here] = span.slot
        batch["sequences"][here] = index
        batch["pages"][index, : min(len(span.pages), blocks)] = span.pages[:blocks]
        batch["lengths"][index] = end
        tiles = -(-size // tile)
        rows = np.full(tiles * tile, -1, np.int32)
        rows[:size] = np.arange(row, row + size)
        batch["rows"][next_tile : next_tile + tiles] = rows.reshape(tiles, tile)
        batch["tile_sequence"][next_tile : next_tile + tiles] = index
        batch["place"][here] = next_tile * tile + np.arange(size)
        next_tile += tiles
    return batch
