"""Does an adapter of rank 1 reach what one of rank 16 does, and what do ranks above 64 win?

    python -m studies.rank_regimes [--seeds 6]

Ranks 1 to 64 learn right answers of a task, and from rewards, with two sizes of batch each; each rank with the rate
that is best for it on a selection part. Writes docs/studies/rank-regimes.md with its picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pefx.config import TaskConfig, TrainConfig
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.populations.cells import UNTAUGHT, Cell, Population, better, grid, matched, shown
from studies.populations.pictures import lines
from studies.populations.spread import best_seed, spread, wider
from studies.populations.subjects import rewarded, told
from studies.populations.verdicts import LIMITS, verdict
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table

RANKS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (64, 256)  # of a user in a step
PROBLEMS = (2, 4)  # of a user in a step, with eight answers each
RATES = {"told": (1.6e-3, 4e-3, 1e-2, 2.5e-2), "rewarded": (1.6e-3, 4e-3, 1e-2)}
HEAD = ("rank", "rate", "mean", "spread over seeds", "best seed", "worse than rank 16 by")


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "rank_regimes"


@dataclass(frozen=True)
class Regime:
    """What a rank came to with its rate: its mean, its spread, its best seed, how far it is behind rank 16, and by how
    many doublings its spread is wider.
    """

    rank: int
    rate: str
    mean: Interval
    spread: Interval
    best: float
    behind: Interval
    wider: Interval

    def row(self) -> list[str]:
        """Its line of a table."""
        behind = "-" if self.rank == 16 else str(self.behind)
        return [str(self.rank), self.rate, str(self.mean), str(self.spread), f"{self.best:.3f}", behind]


def cells(config: TrainConfig, ranks: Sequence[int], rates: Sequence[float]) -> list[Cell]:
    """Alpha is the same for all ranks, which moves the best rate least."""
    return grid({f"r{rank}": replace(config.adapter, rank=rank) for rank in ranks}, rates)


def regimes(population: Population, more: bool) -> tuple[list[Regime], Interval]:
    """Each rank with its own rate; and the bare base."""
    selection = population.selection(cells(population.config, RANKS, RATES["rewarded" if more else "told"]))
    best = matched(selection, more)
    report = population.report([UNTAUGHT, *best.values()])
    found = []
    for rank in RANKS:
        cell = best[f"r{rank}"]
        behind = interval(better(report[best["r16"]], report[cell], more))
        top = best_seed(selection[cell], report[cell], more)
        values = interval(report[cell]), spread(report[cell])
        apart = wider(report[cell], report[best["r16"]])
        found.append(Regime(rank, shown(cell, selection), *values, top, behind, apart))
    return found, interval(report[UNTAUGHT])


def main(options: Options) -> int:
    """Exit status 1 unless every rank learns."""
    texts = read_file("configs/population_told.py", TrainConfig)
    rewards = read_file("configs/population_rewarded.py", TrainConfig)
    subjects = told(options.out / "texts", TaskConfig("edits", level=2), 400, 32)
    found: dict[str, list[Regime]] = {}
    bases: dict[str, Interval] = {}
    for tokens in TOKENS:
        config = replace(texts, data=replace(texts.data, tokens_per_user=tokens))
        name = f"told, {tokens} tokens a step: nats per token"
        population = Population(config, subjects, options.seeds, options.out / f"told_{tokens}")
        found[name], bases[name] = regimes(population, more=False)
    for problems in PROBLEMS:
        answers = problems * rewards.rollout.group
        room = replace(rewards.data, tokens_per_user=answers * rewards.data.sequence_length)
        config = replace(rewards, rollout=replace(rewards.rollout, prompts=problems), data=room)
        name = f"rewarded, {answers} answers a step: mean reward"
        population = Population(config, rewarded(config), options.seeds, options.out / f"rewarded_{problems}")
        found[name], bases[name] = regimes(population, more=True)
    write(found, bases, options)
    gains = [
        (own.mean.mean - bases[name].mean) * (1 if name.startswith("rewarded") else -1)
        for name, everyone in found.items()
        for own in everyone
    ]
    return 0 if min(gains) > 0 else 1


def write(found: Mapping[str, Sequence[Regime]], bases: Mapping[str, Interval], options: Options) -> None:
    """The page and its picture."""
    panels = {name: {"mean": {float(own.rank): own.mean for own in regimes}} for name, regimes in found.items()}
    panels["spread over seeds"] = {name.split(":")[0]: _spreads(regimes) for name, regimes in found.items()}
    lines(panels, "rank", PAGES / "rank-regimes.png", "Ranks with a rate each")
    text = [
        "How much rank does a small adapter need? Ranks 1 to 64, on attention and dense layers of `assets/base_tasks`, "
        "alpha 16 for all, learn right answers of `edits` at level 2 (other problems for each seed), with two sizes of "
        "batch; or are rewarded for `ends` with GRPO, with two sizes too. Every rank has the rate, of four or "
        "three, that is best on average over seeds on a selection part (an edge: the least or the highest); all "
        "figures are of another held-out part. The best seed is chosen on the selection part too. Spread is the "
        "standard deviation over seeds; problems differ from seed to seed, so part of it is of the problems.",
    ]
    for name, regimes in found.items():
        text += [f"## {name[0].upper()}{name[1:]}", f"The bare base: {bases[name]}."]
        text.append(table(HEAD, [own.row() for own in regimes]))
    text += ["## What it says", *(_reading(name, regimes) for name, regimes in found.items()), LIMITS]
    command, title = "python -m studies.rank_regimes", "Ranks"
    print(Page("rank-regimes", title, command, options.seeds, text, "rank-regimes.png").write())


def _reading(name: str, regimes: Sequence[Regime]) -> str:
    """What this says of the paper's claims: ranks 1 to 4 reach the best of others, with a lower mean and a wider
    spread; 64 and more win nothing.
    """
    own = {regime.rank: regime for regime in regimes}
    low, high, usual = own[1], own[64], own[16]
    mean = verdict(low.behind, "a lower mean, as the paper has it", "a better mean, against it", "no lower mean")
    apart = verdict(low.wider, "is wider, as it has it", "is narrower, against it", "cannot be told from it")
    win = verdict(high.behind, "loses", "wins something, against the paper", "wins nothing, as the paper has it")
    return (
        f"{name[0].upper()}{name[1:]}. Rank 1 has {mean} (behind rank 16 by {low.behind}). Its spread beside that of "
        f"rank 16 {apart} (by {low.wider} doublings). Its best seed has {low.best:.3f}, that of rank 16 "
        f"{usual.best:.3f}. Rank 64 {win} (behind rank 16 by {high.behind})."
    )


def _spreads(regimes: Sequence[Regime]) -> dict[float, Interval]:
    return {float(own.rank): own.spread for own in regimes}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
