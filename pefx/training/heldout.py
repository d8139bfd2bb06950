"""Held-out text through `score`: how many nats a token costs under which adapter, many users in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pefx.adapters.bank import Bank
from pefx.batch import TokenBatch
from pefx.errors import PefxError
from pefx.model import Base
from pefx.steps import TrainBatch, score
from pefx.training.planner import Layout, Lesson, lay_out


@dataclass(frozen=True)
class Exam:
    """Texts to score with the adapter in `slot` of a bank (-1: the bare base)."""

    lessons: tuple[Lesson, ...]
    slot: int


def device_batch(fields: dict[str, Any]) -> TrainBatch:
    """A `TrainBatch` from the fields that `lay_out` made."""
    return TrainBatch(TokenBatch(**fields["tokens"]), fields["targets"], fields["weights"])


def nats_per_token(base: Base, bank: Bank | None, exams: Sequence[Exam], layout: Layout) -> list[float]:
    """The mean negative log-probability of each exam's weighted targets, in nats."""
    totals, weights = np.zeros(len(exams)), np.zeros(len(exams))
    for owners, lessons in _batches(exams, layout):
        fields = lay_out([lessons], replace(layout, shares=1, share=layout.tokens))
        logprobs = np.asarray(score(base, bank, device_batch(fields)), np.float64)
        row = 0
        for owner, item in zip(owners, lessons, strict=True):
            own = slice(row, row + len(item.tokens))
            totals[owner] -= float(np.sum(logprobs[own] * item.weights))
            weights[owner] += float(np.sum(item.weights, dtype=np.float64))
            row += item.pages(layout.page_size) * layout.page_size
    if not np.all(weights > 0):
        raise PefxError("held-out text without a token that counts in the loss cannot be scored")
    return [float(value) for value in totals / weights]


def _batches(exams: Sequence[Exam], layout: Layout) -> Iterator[tuple[list[int], list[Lesson]]]:
    """Lessons in turn, one of each exam, as many to a batch as fit, each with the index of its exam."""
    owners: list[int] = []
    lessons: list[Lesson] = []
    room = layout.tokens
    for turn in range(max(len(exam.lessons) for exam in exams)):
        for owner, exam in enumerate(exams):
            if turn >= len(exam.lessons):
                continue
            item = replace(exam.lessons[turn], slot=exam.slot)
            size = item.pages(layout.page_size) * layout.page_size
            if size > room:
                yield owners, lessons
                owners, lessons, room = [], [], layout.tokens
            owners.append(owner)
            lessons.append(item)
            room -= size
    if lessons:
        yield owners, lessons
