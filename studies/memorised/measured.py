"""What adapters of one cell recalled at each load."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pefx.sweeping.intervals import Interval, interval
from studies.memorised.cells import Cell
from studies.memorised.facts import CORRECTED, NAMES

ALL = "all"
LEVEL = 0.5


@dataclass(frozen=True)
class Load:
    """Of memories with so many slots, seed by seed: their tokens, recall by kind of question, loss in nats a token."""

    slots: int
    tokens: Sequence[int]
    right: Sequence[Mapping[str, float]]
    loss: Sequence[float]

    @property
    def recalls(self) -> list[float]:
        """Of all questions, seed by seed."""
        return [own[ALL] for own in self.right]

    @cached_property
    def recall(self) -> Interval:
        return interval(self.recalls)

    def of(self, kind: str) -> str:
        """Mean recall of a kind of question, in words; nothing where none was asked."""
        asked = [own[kind] for own in self.right if kind in own]
        return f"{sum(asked) / len(asked):.2f}" if asked else ""

    @property
    def bits(self) -> float:
        """What the names of a memory are worth, over its tokens."""
        names = self.slots + self.slots // CORRECTED
        return names * math.log2(NAMES) * len(self.tokens) / sum(self.tokens)


@dataclass(frozen=True)
class Measured:
    """Adapters of one cell, which learn so many numbers, at ascending loads."""

    cell: Cell
    parameters: int
    loads: Sequence[Load]

    def place(self, load: Load) -> float:
        """Memory tokens for each number."""
        return sum(load.tokens) / len(load.tokens) / self.parameters

    @property
    def line(self) -> list[tuple[float, Interval]]:
        return [(self.place(load), load.recall) for load in self.loads]

    @property
    def halves(self) -> list[float | None]:
        """Where the recall of each seed falls through a half, in tokens a number; None where it does not."""
        seeds = range(len(self.loads[0].tokens))
        return [
            falls_through(
                [load.tokens[seed] / self.parameters for load in self.loads],
                [load.recalls[seed] for load in self.loads],
            )
            for seed in seeds
        ]

    @property
    def half(self) -> Interval | None:
        """The mean of `halves`; None unless all of them are there."""
        found = [half for half in self.halves if half is not None]
        return interval(found) if len(found) == len(self.halves) else None

    @property
    def where(self) -> str:
        """`half` in words; of seeds that have none, on which side of all loads it lies."""
        found = [half for half in self.halves if half is not None]
        above = sum(recall >= LEVEL for recall in self.loads[-1].recalls)
        below = len(self.halves) - len(found) - above
        words = [short(interval(found)) if len(found) > 1 else f"{half:.2g}" for half in found[:1]]
        for side, count, load in (("below", below, self.loads[0]), ("above", above, self.loads[-1])):
            if count:
                words.append(f"{side} {self.place(load):.2g} for {count} of {len(self.halves)}")
        return ", ".join(words)


def short(found: Interval) -> str:
    """To two digits."""
    return f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


def falls_through(loads: Sequence[float], recalls: Sequence[float], level: float = LEVEL) -> float | None:
    """Where recall, drawn straight over the logarithm of ascending loads, falls through a level for the last time: so
    that a chance failure at a small load is not taken for it. None where it ends above.
    """
    points = list(zip(map(math.log, loads), recalls, strict=True))
    for (x, before), (y, after) in reversed(list(pairwise(points))):
        if before >= level > after:
            return math.exp(x + (y - x) * (before - level) / (before - after))
    return None
