"""From spans of sequences to the flat batch a step reads. Numpy only: the host decides, the device computes.

Training and serving lay out tokens with this one function; they differ in the spans they pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.errors import PefxError

# What a token does to the memory of its sequence: it is gathered into a message, it ends the message and has it
# written; of a first token, the memory is empty before it, or goes on where the sequence before it in the batch ended
# (neither: it is what the pool holds).
GATHER, COMMIT, FRESH, FOLLOW = 1, 2, 4, 8

TILE = 32  # rows of one sequence that lie together; fewer where a page is smaller


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence in this step, `start` the position of the first.

    `pages` are the pool pages of the sequence's blocks from position 0 on, at least as far as this span reaches.
    `memory` says what each token does to the sequence's memory (None: nothing).
    """

    tokens: Sequence[int] | np.ndarray
    start: int
    slot: int
    pages: Sequence[int]
    memory: Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True)
class Sizes:
    """The shape of a batch: `singles` rows for spans of one token, `tiles` tiles of `tile` rows for the others.

    Up to `sequences` spans, `blocks` pages of `page_size` tokens to a sequence. `memory`: sequences have memories.
    """

    singles: int
    tiles: int
    sequences: int
    blocks: int
    page_size: int
    tile: int = TILE
    memory: bool = False

    @property
    def tokens(self) -> int:
        """Rows, T."""
        return self.singles + self.tiles * self.tile


def whole_pages(length: int, page_size: int) -> int:
    """Pages (or tiles, or any units) that `length` tokens occupy."""
    return -(-length // page_size)


def tile_of(page_size: int) -> int:
    """Rows of a tile where pages have `page_size` tokens; raises PefxError where a page holds no whole tiles."""
    tile = min(TILE, page_size)
    if tile < 2 or page_size % tile:
        raise PefxError(f"page_size is {page_size}; it must be a multiple of {TILE}, or from 2 to {TILE}")
    return tile


def span_rows(spans: Sequence[Span], sizes: Sizes) -> list[int]:
    """First batch row of each span: spans of one token fill the singles first. Raises PefxError if they do not fit."""
    rows, single, at = [], 0, sizes.singles
    for span in spans:
        if len(span.tokens) == 1 and single < sizes.singles:
            rows.append(single)
            single += 1
            continue
        rows.append(at)
        at += whole_pages(len(span.tokens), sizes.tile) * sizes.tile
    if at > sizes.tokens or len(spans) > sizes.sequences:
        used = sum(len(span.tokens) for span in spans)
        raise PefxError(
            f"{len(spans)} spans of {used} tokens do not fit a step of {sizes.sequences} sequences, {sizes.singles} "
            f"single rows and {sizes.tiles} tiles of {sizes.tile}"
        )
    return rows


def pack(spans: Sequence[Span], sizes: Sizes, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Fields of a `TokenBatch` of exactly these sizes; span i is sequence i. Raises PefxError where spans do not fit.

    `rows` are the spans' first rows where they shall not simply follow each other.
    """
    tokens, blocks = sizes.tokens, sizes.blocks
    batch: dict[str, Any] = {
        "tokens": np.zeros(tokens, np.int32),
        "positions": np.full(tokens, -1, np.int32),
        "slots": np.full(tokens, -1, np.int32),
        "sequences": np.zeros(tokens, np.int32),
        "pages": np.full((sizes.sequences, blocks), -1, np.int32),
        "lengths": np.zeros(sizes.sequences, np.int32),
        "page_size": sizes.page_size,
        "singles": sizes.singles,
        "tile": sizes.tile,
    }
    if sizes.memory:
        batch["memory"] = np.zeros(tokens, np.int32)
    for index, (span, row) in enumerate(zip(spans, span_rows(spans, sizes) if rows is None else rows, strict=True)):
        size = len(span.tokens)
        end = span.start + size
        if size == 0 or whole_pages(end, sizes.page_size) > min(len(span.pages), blocks):
            raise PefxError(f"span {index} of {size} tokens to position {end} lacks pages ({len(span.pages)} given)")
        here = slice(row, row + size)
        batch["tokens"][here] = span.tokens
        batch["positions"][here] = np.arange(span.start, end)
        batch["slots"][here] = span.slot
        batch["sequences"][here] = index
        if sizes.memory and span.memory is not None:
            batch["memory"][here] = span.memory
        elif sizes.memory and span.start == 0:
            batch["memory"][row] = FRESH
        batch["pages"][index, : min(len(span.pages), blocks)] = span.pages[:blocks]
        batch["lengths"][index] = end
    return batch


def beside(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch of the batches of all shards, one after another; fields that are no arrays are the same in all."""
    first = shards[0]
    return {
        name: np.concatenate([shard[name] for shard in shards]) if isinstance(value, np.ndarray) else value
        for name, value in first.items()
    }
