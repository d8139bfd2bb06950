"""What tokens that are learned from do to memories. Host logic: no jax.

The state of a layer goes from token to token, through a history that attention does not see: its sequences are laid
before the one that is learned, each begins where the one before ended. What is learned is not written, so that a
target is never read from the memory (2605.12357, section 4).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from pefx.config import AdapterSpec
from pefx.data.formats import Example
from pefx.packing import COMMIT, FOLLOW, FRESH, GATHER
from pefx.training.planner import Lesson, lesson

Form = Literal["tokens", "messages"]


def flags(written: np.ndarray, form: Form, first: int, ends: np.ndarray | None = None) -> np.ndarray:
    """Bits of `pefx.packing` for each token of a sequence: bool[n] `written`, those of messages that end at `ends`
    (None: where the next token is not written). The first token has `first` beside.
    """
    if ends is None:
        ends = np.append(written[:-1] & ~written[1:], written[-1:])
    done = written if form == "tokens" else written & ends
    found = np.where(written, GATHER, 0) + np.where(done, COMMIT, 0)
    found[0] += first
    return found.astype(np.int32)


def remembered(example: Example, spec: AdapterSpec, length: int, slot: int) -> Lesson:
    """An example as a lesson; of an adapter that has memories, with what its tokens do to them.

    Where there is a history it alone is written. Else all is, but what is learned, unless everything is.
    """
    plain = lesson(example.tokens, example.loss, slot)
    if spec.method != "delta_mem":
        return plain
    before = tuple(_pieces(example.history, spec.writes, length, slot))
    learned = example.loss[:-1]
    written = np.zeros(len(learned), bool) if before else ~learned | bool(learned[1:].all())
    return replace(plain, memory=flags(written, spec.writes, FOLLOW if before else FRESH), before=before)


def _pieces(history: tuple[np.ndarray, ...], form: Form, length: int, slot: int) -> Iterator[Lesson]:
    """Sequences of at most `length` tokens, of which nothing is learned."""
    if not history:
        return
    tokens, ends = np.concatenate(history), np.zeros(sum(map(len, history)), bool)
    ends[np.cumsum([len(message) for message in history]) - 1] = True
    for at in range(0, len(tokens), length):
        here = slice(at, at + length)
        own, count = tokens[here], len(tokens[here])
        memory = flags(np.ones(count, bool), form, FOLLOW if at else FRESH, ends[here])
        nothing = np.full(count, -1, np.int32), np.zeros(count, np.float32)
        yield Lesson(own, *nothing, slot, memory=memory)
