"""The cells of a sweep as users of one run, and what each came to. Plain Python."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from pefx.config import AdapterSpec, HalvingConfig, Record, SweepConfig, TrainConfig, UserConfig
from pefx.sweeping.intervals import Interval, interval
from pefx.sweeping.transfer import at
from pefx.training.halving import worth
from pefx.training.journal import Measure

DEFAULT = AdapterSpec()


@dataclass(frozen=True)
class Cell:
    """One adapter with one learning rate, as a record of what they would mean at other ranks."""

    record: Record

    @property
    def label(self) -> str:
        """The adapter in a few words, a name that a policy may have."""
        own = self.record.adapter
        words = [own.method, f"r{own.rank}"]
        words += [] if own.init == DEFAULT.init else [own.init]
        words += [f"a{own.alpha:g}"]
        return "-".join(words)

    @property
    def name(self) -> str:
        return f"{self.label}-lr{self.record.learning_rate:g}"


@dataclass(frozen=True)
class Result:
    """What a cell came to after so many `updates`, fewer where it was stopped: the last measure of each seed, and their
    mean with its interval (None: of one seed, or no numbers).
    """

    cell: Cell
    values: tuple[float, ...]
    spread: Interval | None
    updates: int

    @property
    def mean(self) -> float:
        return mean(self.values)


def cells(config: SweepConfig) -> list[Cell]:
    """All cells, adapter by adapter, rank by rank. Raises PefxError where the scaling has no meaning for an adapter."""
    return [
        Cell(at(Record(adapter, rate, config.scaling), rank))
        for adapter in config.adapters
        for rank in config.ranks or (adapter.rank,)
        for rate in config.learning_rates
    ]


def population(config: SweepConfig) -> TrainConfig:
    """The run of all cells and seeds: the same data, in the same order, for the same seed of every cell."""
    (user,) = config.run.users
    halving = HalvingConfig(config.rungs, config.keep, config.seeds) if config.rungs else None
    return replace(config.run, name=config.name, users=tuple(_users(config, user)), halving=halving)


def _users(config: SweepConfig, user: UserConfig) -> Iterator[UserConfig]:
    optimizer = user.optimizer or config.run.optimizer
    for cell in cells(config):
        own = replace(optimizer, learning_rate=cell.record.learning_rate)
        for seed in range(config.seeds):
            yield replace(user, name=f"{cell.name}/{seed}", adapter=cell.record.adapter, optimizer=own, seed=seed)


def results(config: SweepConfig, rows: Sequence[dict[str, Any]], measure: Measure) -> list[Result]:
    """What all cells came to, best first: highest reward, or lowest nats per token; behind those that were not stopped
    the others, those that came further first.
    """
    last: dict[str, float] = {}
    stopped = {row["name"]: int(row["updates"]) for row in rows if row["kind"] == "stopped"}
    (user,) = config.run.users
    updates = config.run.steps if user.steps is None else user.steps
    key = "reward" if measure == "reward" else "loss"
    for row in rows:
        if row["kind"] == "heldout" and key in row:
            last[row["name"]] = row[key]
    found = []
    for cell in cells(config):
        values = tuple(last[f"{cell.name}/{seed}"] for seed in range(config.seeds))
        spread = interval(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
        found.append(Result(cell, values, spread, stopped.get(f"{cell.name}/0", updates)))
    return sorted(found, key=lambda one: (-one.updates, -worth(one.mean, measure)))
