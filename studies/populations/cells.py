"""Cases with several rates and seeds as the users of one run, and what each came to on two held-out parts.

A rate is chosen on the first part, the selection; what a page reports is of the second, which chose nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pefx.config import AdapterSpec, TrainConfig, UserConfig
from studies.rewarded.exam import measured
from studies.rewarded.runs import BASE, heldout, trained


@dataclass(frozen=True)
class Cell:
    """One case of what is compared, by a name that a policy may have, with one learning rate."""

    case: str
    adapter: AdapterSpec
    rate: float

    def policy(self, seed: int) -> str:
        """Who this is with a seed."""
        return f"{self.case}-lr{self.rate:g}/{seed}"


UNTAUGHT = Cell("base", AdapterSpec(), 0.0)


class Subject(NamedTuple):
    """What a seed's users learn, beside their selection part, and how the report part examines them."""

    taught: UserConfig
    examined: UserConfig


Subjects = Callable[[int], Subject]  # of a seed
Marks = Mapping[Cell, tuple[float, ...]]  # of each seed, nats per token or mean rewards


def grid(
    cases: Mapping[str, AdapterSpec], rates: Sequence[float], fourfold: Mapping[str, int] | None = None
) -> list[Cell]:
    """Every case with every rate; a case of `fourfold` with these times 4 to that power."""
    moved = {case: 4.0 ** (fourfold or {}).get(case, 0) for case in cases}
    return [Cell(case, adapter, rate * moved[case]) for case, adapter in cases.items() for rate in rates]


@dataclass(frozen=True)
class Population:
    """Cells as users of runs like `config`; `folder` has what they become, saved every `saved` steps on the way."""

    config: TrainConfig
    subjects: Subjects
    seeds: int
    folder: Path
    saved: int = 20

    def selection(self, cells: Sequence[Cell]) -> Marks:
        """Trains all cells and seeds in one run. Started again it goes on, or is done already."""
        users = []
        for cell in cells:
            optimizer = replace(self.config.optimizer, learning_rate=cell.rate)
            for seed in range(self.seeds):
                own = replace(self.subjects(seed).taught, name=cell.policy(seed), adapter=cell.adapter, seed=seed)
                users.append(replace(own, optimizer=optimizer))
        rows = trained(replace(self.config, users=tuple(users)), self.folder, every=self.saved)
        last = {user.name: heldout(rows, user.name)[-1][1] for user in users}
        return self._by_seed(cells, last)

    def report(self, cells: Sequence[Cell]) -> Marks:
        """What these cells' revisions come to on the report part, kept on disk; `UNTAUGHT` is the bare base."""
        kept = self.folder / "report.json"
        values: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
        here = replace(self.config, base=str(BASE), output=str(self.folder / "exam"))
        users = [
            replace(self.subjects(seed).examined, name=cell.policy(seed), adapter=cell.adapter, seed=seed)
            for cell in cells
            for seed in range(self.seeds)
        ]
        missing = [user for user in users if user.name not in values]
        if missing:
            values |= measured(here, self.folder / "catalog", missing)
            kept.write_text(json.dumps(values))
        return self._by_seed(cells, values)

    def _by_seed(self, cells: Sequence[Cell], values: Mapping[str, float]) -> Marks:
        return {cell: tuple(values[cell.policy(seed)] for seed in range(self.seeds)) for cell in cells}


def matched(selection: Marks, more: bool) -> dict[str, Cell]:
    """Each case's cell whose mean over seeds is best: where `more`, the highest; else the lowest."""
    best: dict[str, Cell] = {}
    for cell in sorted(selection, key=lambda cell: float(np.mean(selection[cell])), reverse=more):
        best.setdefault(cell.case, cell)
    return {case: best[case] for case in dict.fromkeys(cell.case for cell in selection)}


def better(own: Sequence[float], other: Sequence[float], more: bool) -> list[float]:
    """By how much each seed is better than the same seed of another."""
    return [(1 if more else -1) * (a - b) for a, b in zip(own, other, strict=True)]


def shown(cell: Cell, selection: Marks) -> str:
    """A cell's rate, marked where it is the lowest or highest that its case was given."""
    rates = [other.rate for other in selection if other.case == cell.case]
    return f"{cell.rate:g}{' (edge)' if cell.rate in (min(rates), max(rates)) else ''}"
