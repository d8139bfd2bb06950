"""Held-out text through `score`: how many nats a token costs under which adapter, many users in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from pefx.adapters.bank import Bank
from pefx.batch import TokenBatch
from pefx.errors import PefxError
from pefx.losses.policy import PolicyTerms
from pefx.mesh import by_row, fetch, share
from pefx.model import Base
from pefx.steps import TrainBatch, score_with_routes
from pefx.training.planner import Layout, Lesson, lay_out


@dataclass(frozen=True)
class Exam:
    """Texts to score with the adapter in `slot` of a shard's part of a bank (-1: the bare base, on any shard)."""

    lessons: tuple[Lesson, ...]
    slot: int
    shard: int = 0


def device_batch(fields: dict[str, Any]) -> TrainBatch:
    """A `TrainBatch` from the fields that `lay_out` made."""
    policy = PolicyTerms(**fields["policy"]) if "policy" in fields else None
    return TrainBatch(
        TokenBatch(**fields["tokens"]), fields["targets"], fields["weights"], policy, fields.get("routes")
    )


def nats_per_token(base: Base, bank: Bank | None, exams: Sequence[Exam], layout: Layout) -> list[float]:
    """The mean negative log-probability of each exam's weighted targets, in nats."""
    totals, weights = np.zeros(len(exams)), np.zeros(len(exams))
    for exam, place, logprobs, _ in scored(base, bank, exams, layout):
        item = exams[exam].lessons[place]
        totals[exam] -= float(np.sum(logprobs.astype(np.float64) * item.weights))
        weights[exam] += float(np.sum(item.weights, dtype=np.float64))
    if not np.all(weights > 0):
        raise PefxError("held-out text without a token that counts in the loss cannot be scored")
    return [float(value) for value in totals / weights]


class Scored(NamedTuple):
    """A lesson of an exam, by its place: float32[n] log-probabilities of its targets, int32[n, Lm, k] routes taken."""

    exam: int
    place: int
    logprobs: np.ndarray
    routes: np.ndarray


def scored(base: Base, bank: Bank | None, exams: Sequence[Exam], layout: Layout) -> Iterator[Scored]:
    """Every lesson of all exams. Recorded routes are taken again where the layout has them."""
    whole = replace(layout, shares=1, share=layout.tokens, terms=False)
    own = [list(_batches(exams, shard, layout)) for shard in range(layout.shards)]
    for batch in zip_longest(*own, fillvalue=([], [])):
        fields = lay_out([[lessons] for _, lessons in batch], whole)
        found = fetch(score_with_routes(base, bank, share(by_row, device_batch(fields))))
        logprobs, routes = (x.reshape(layout.shards, -1, *x.shape[1:]) for x in map(np.asarray, found))
        for shard, (owners, lessons) in enumerate(batch):
            row = 0
            for (exam, place), item in zip(owners, lessons, strict=True):
                own = row + item.pages_before(layout.page_size) * layout.page_size
                here = slice(own, own + len(item.tokens))
                yield Scored(exam, place, logprobs[shard, here], routes[shard, here])
                row += item.pages(layout.page_size) * layout.page_size


Owners = list[tuple[int, int]]


def _batches(exams: Sequence[Exam], shard: int, layout: Layout) -> Iterator[tuple[Owners, list[Lesson]]]:
    """A shard's lessons in turn, one of each exam, as many to a batch as fit, each with its exam and place there."""
    owners: Owners = []
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
            owners.append((owner, turn))
            lessons.append(item)
            room -= size
    if lessons:
        yield owners, lessons
