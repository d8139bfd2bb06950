"""Losses of the table once more in plain float64 numpy, each from its formula; batches for both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pefx.batch import TokenBatch
from pefx.losses.policy import PolicyNumbers, PolicyTerms
from pefx.losses.rows import LOSSES, NUMBER
from pefx.packing import Sizes, Span, pack, tile_of, whole_pages

PAGE, BLOCKS = 8, 2


@dataclass(frozen=True)
class Numbers:
    """A policy's loss by name, and its numbers."""

    loss: str
    clip_low: float
    clip_high: float
    beta: float
    kl: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True)
class Told:
    """All that is known of the tokens of one sequence, `[n]`; `partner` is the place of another in the list."""

    slot: int
    logprobs: np.ndarray
    old: np.ndarray
    base: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    entropies: np.ndarray
    partner: int = -1


def default(loss: str, **changes: float) -> Numbers:
    """The numbers of its row."""
    row = LOSSES[loss]
    return replace(Numbers(loss, row.clip_low, row.clip_high, row.beta), **changes)


def draw(numbers: Sequence[Numbers], seed: int, away: float = 0.3) -> list[Told]:
    """Two sequences of each slot, paired where its loss wants pairs; some tokens have no weight."""
    rng, found = np.random.default_rng(seed), []
    for slot, its in enumerate(numbers):
        for side in (0, 1):
            n = int(rng.integers(3, PAGE * BLOCKS))
            logprobs = -rng.exponential(size=n) - 0.05
            pair = LOSSES[its.loss].over == "pair"
            found.append(
                Told(
                    slot,
                    logprobs,
                    logprobs - away * rng.normal(size=n),
                    logprobs - away * rng.normal(size=n),
                    np.full(n, 1.0 - 2.0 * side) if pair else rng.normal(size=n),
                    np.where(rng.random(n) < 0.25, 0.0, 0.2 + rng.random(n)),
                    rng.random(n) * 2,
                    2 * slot + 1 - side if pair else -1,
                )
            )
    return found


def pieces(told: Sequence[Told], numbers: Sequence[Numbers], logprobs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The weighted loss of every token at `logprobs`; what has no gradient stays at the log-probabilities told."""
    return [_sequence(i, told, numbers[own.slot], logprobs) * own.weights for i, own in enumerate(told)]


def _sequence(i: int, told: Sequence[Told], its: Numbers, logprobs: Sequence[np.ndarray]) -> np.ndarray:
    own, logp = told[i], logprobs[i]
    counted = own.weights != 0
    if its.loss == "dpo":
        margin = (logp - own.base)[counted].sum()
        if own.partner >= 0:
            other = told[own.partner]
            margin -= (logprobs[own.partner] - other.base)[other.weights != 0].sum()
        loss = -np.log(1 / (1 + np.exp(-its.beta * own.advantages * margin)))
    elif its.loss == "gspo":
        mean = (logp - own.old)[counted].mean() if counted.any() else 0.0
        loss = _pessimistic(np.full(len(logp), np.exp(mean)), own.advantages, its)
    elif its.loss == "cross_entropy":
        loss = -logp
    elif its.loss in ("importance_sampling", "context"):
        loss = -np.exp(logp) / np.exp(own.old) * own.advantages
    elif its.loss == "cispo":
        kept = np.clip(np.exp(own.logprobs - own.old), 1 - its.clip_low, 1 + its.clip_high)
        loss = -kept * own.advantages * logp
    elif its.loss == "dro":
        loss = -(logp * own.advantages - its.beta / 2 * (logp - own.old) ** 2)
    else:
        loss = _pessimistic(np.exp(logp - own.old), own.advantages, its)
    away = own.base - logp
    return loss + its.kl * (np.exp(away) - away - 1) - its.entropy * own.entropies


def _pessimistic(ratio: np.ndarray, advantages: np.ndarray, its: Numbers) -> np.ndarray:
    """No gain from a likelier good token beyond the upper bound, nor from an unlikelier bad one beyond the lower."""
    bounded = np.where(advantages > 0, np.minimum(ratio, 1 + its.clip_high), np.maximum(ratio, 1 - its.clip_low))
    return -bounded * advantages


def gradients(told: Sequence[Told], numbers: Sequence[Numbers], size: float = 1e-6) -> list[np.ndarray]:
    """Of the sum of all losses in each log-probability, by central differences."""

    def total(i: int, t: int, by: float) -> float:
        moved = [x.logprobs.copy() for x in told]
        moved[i][t] += by
        return sum(float(x.sum()) for x in pieces(told, numbers, moved))

    return [
        np.array([(total(i, t, size) - total(i, t, -size)) / (2 * size) for t in range(len(x.logprobs))])
        for i, x in enumerate(told)
    ]


@dataclass(frozen=True)
class Case:
    """A batch of sequences in some order: what `policy_losses` takes, and where each sequence's rows are."""

    batch: TokenBatch
    terms: PolicyTerms
    numbers: PolicyNumbers
    logprobs: np.ndarray
    entropies: np.ndarray
    weights: np.ndarray
    rows: list[slice]


def lay_out(told: Sequence[Told], numbers: Sequence[Numbers], order: Sequence[int], empty: float = 0.0) -> Case:
    """`told[order[0]]` comes first. Rows of nobody hold `empty`."""
    spans, starts, page = [], [], 0
    for i in order:
        need = whole_pages(len(told[i].logprobs), PAGE)
        spans.append(Span(np.zeros(len(told[i].logprobs), np.int32), 0, told[i].slot, range(page, page + need)))
        starts.append(page * PAGE)
        page += need
    tile, pages = tile_of(PAGE), BLOCKS * len(told)
    batch = TokenBatch(**pack(spans, Sizes(0, pages * PAGE // tile, len(told) + 1, BLOCKS, PAGE, tile), starts))
    where = {i: place for place, i in enumerate(order)}
    rows = [slice(starts[where[i]], starts[where[i]] + len(x.logprobs)) for i, x in enumerate(told)]

    def column(name: str) -> np.ndarray:
        out = np.full(pages * PAGE, empty, np.float32)
        for x, here in zip(told, rows, strict=True):
            out[here] = getattr(x, name)
        return out

    partners = np.full(len(told) + 1, -1, np.int32)
    for i, x in enumerate(told):
        partners[where[i]] = where[x.partner] if x.partner >= 0 else -1
    terms = PolicyTerms(column("advantages"), column("old"), column("base"), partners)
    weights = np.zeros(pages * PAGE, np.float32)
    for x, here in zip(told, rows, strict=True):
        weights[here] = x.weights
    columns: Any = {
        name: np.asarray([getattr(x, name) for x in numbers], np.float32)
        for name in ("clip_low", "clip_high", "beta", "kl", "entropy")
    }
    number = np.asarray([NUMBER[x.loss] for x in numbers], np.int32)
    device = PolicyNumbers(number, **columns, denominator=np.ones(len(numbers), np.float32))
    return Case(batch, terms, device, column("logprobs"), column("entropies"), weights, rows)
