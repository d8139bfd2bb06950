"""Held-out text through `score`: how many nats a token costs under which adapter, many users in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from pefx.adapters.bank import Bank
from pefx.batch import TokenBatch
from pefx.errors import PefxError
from pefx.mesh import by_row, fetch, share
from pefx.model import Base
from pefx.steps import TrainBatch, score
from pefx.training.planner import Layout, Lesson, lay_out


@dataclass(frozen=True)
class Exam:
    """Texts to score with the adapter in `slot` of a shard's part of a bank (-1: the bare base, on any shard)."""

    lessons: tuple[Lesson, ...]
    slot: int
    shard: int = 0


def device_batch(fields: dict[str, Any]) -> TrainBatch:
    """A `TrainBatch` from the fields that `lay_out` made."""
    return TrainBatch(TokenBatch(**fields["tokens"]), fields["targets"], fields["weights"])


def nats_per_token(base: Base, bank: Bank | None, exams: Sequence[Exam], layout: Layout) -> list[float]:
    """The mean negative log-probability of each exam's weighted targets, in nats."""
    totals, weights = np.zeros(len(exams)), np.zeros(len(exams))
    whole = replace(layout, shares=1, share=layout.tokens)
    own = [list(_batches(exams, shard, layout)) for shard in range(layout.shards)]
    for batch in zip_longest(*own, fillvalue=([], [])):
        fields = lay_out([[lessons] for _, lessons in batch], whole)
        logprobs = np.asarray(fetch(score(base, bank, share(by_row, device_batch(fields)))), np.float64).reshape(
            layout.shards, -1
        )
        for shard, (owners, lessons) in enumerate(batch):
            row = 0
            for owner, item in zip(owners, lessons, strict=True):
                here = slice(row, row + len(item.tokens))
                totals[owner] -= float(np.sum(logprobs[shard, here] * item.weights))
                weights[owner] += float(np.sum(item.weights, dtype=np.float64))
                row += item.pages(layout.page_size) * layout.page_size
    if not np.all(weights > 0):
        raise PefxError("held-out text without a token that counts in the loss cannot be scored")
    return [float(value) for value in totals / weights]


def _batches(exams: Sequence[Exam], shard: int, layout: Layout) -> Iterator[tuple[list[int], list[Lesson]]]:
    """A shard's lessons in turn, one of each exam, as many to a batch as fit, each with the index of its exam."""
    owners: list[int] = []
    lessons: list[Lesson] = []
    room = layout.tokens
    own = [i for i, exam in enumerate(exams) if (exam.shard if exam.slot >= 0 else i % layout.shards) == shard]
    for turn in range(max((len(exams[i].lessons) for i in own), default=0)):
        for owner in own:
            if turn >= len(exams[owner].lessons):
                continue
            item = replace(exams[owner].lessons[turn], slot=exams[owner].slot)
            size = item.pages(layout.page_size) * layout.page_size
            if size > room:
                yield owners, lessons
                owners, lessons, room = [], [], layout.tokens
            owners.append(owner)
            lessons.append(item)
            room -= size
    if lessons:
        yield owners, lessons
