"""Which rule for alpha keeps the best rate where it is, when the rank changes?

    python -m studies.rate_transfer [--seeds 6]

Ranks 1, 8 and 64 under three rules for alpha, alike at rank 8, with eight rates each. Writes the page
docs/studies/rate-transfer.md with its picture.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from pefx.config import AdapterSpec, TaskConfig, TrainConfig
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.populations.cells import Cell, Marks, Population, better
from studies.populations.pictures import lines
from studies.populations.rates import at_rate, best_rate, slope
from studies.populations.subjects import told
from studies.populations.verdicts import LIMITS
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table

RANKS, ANCHOR, ALPHA = (1, 8, 64), 8, 16.0  # all rules are the same at the anchor
RATES = tuple(2.5e-4 * 2**step for step in range(8))
# Alpha of a rank, as a power of how many times the anchor it is; and what the best rate should do, by two accounts.
RULES: Mapping[str, float] = {"alpha = 2 r": 1.0, "alpha ~ sqrt r (rsLoRA)": 0.5, "alpha constant": 0.0}
PROXY = {"alpha = 2 r": -1.0, "alpha ~ sqrt r (rsLoRA)": 0.0, "alpha constant": 1.0}  # eta alpha^2 / r the same
ADAM = {"alpha = 2 r": -0.5, "alpha ~ sqrt r (rsLoRA)": -0.25, "alpha constant": 0.0}  # muA, under Adam


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "rate_transfer"


@dataclass(frozen=True)
class Ladder:
    """One rule's cells by rank and rate, with what they came to."""

    cells: Mapping[int, Sequence[Cell]]
    selection: Marks
    report: Marks

    def best(self, rank: int) -> list[float]:
        """Each seed's best rate, by its own selection part."""
        return [best_rate(RATES, losses) for losses in zip(*(self.selection[c] for c in self.cells[rank]), strict=True)]

    def chosen(self, rank: int) -> int:
        """The rate that is best on average, by its place."""
        return int(np.argmin([np.mean(self.selection[cell]) for cell in self.cells[rank]]))

    def lost(self, rank: int, rate: float) -> Interval:
        """Nats on the report part that another rate costs beyond the rank's own."""
        losses = [self.report[cell] for cell in self.cells[rank]]
        with_it = [at_rate(RATES, own, rate) for own in zip(*losses, strict=True)]
        return interval(better(losses[self.chosen(rank)], with_it, more=False))


def spec(config: TrainConfig, rule: str, rank: int) -> AdapterSpec:
    """The adapter of a rank under a rule."""
    return replace(config.adapter, rank=rank, alpha=ALPHA * (rank / ANCHOR) ** RULES[rule])


def main(options: Options) -> int:
    """Exit status 1 unless some rule keeps the rate of the anchor within a tenth of a nat for all ranks."""
    config = read_file("configs/population_told.py", TrainConfig)
    config = replace(config, data=replace(config.data, tokens_per_user=64, users_per_step=56))
    places = {(rule, rank): spec(config, rule, rank) for rule in RULES for rank in RANKS}
    cells = {(s, rate): Cell(f"r{s.rank}-a{s.alpha:g}", s, rate) for s in places.values() for rate in RATES}
    subjects = told(options.out / "texts", TaskConfig("edits", level=2), 200, 32)
    population = Population(config, subjects, options.seeds, options.out / "told", saved=60)
    selection, report = population.selection(list(cells.values())), population.report(list(cells.values()))
    ladders = {
        rule: Ladder({rank: [cells[places[rule, rank], rate] for rate in RATES] for rank in RANKS}, selection, report)
        for rule in RULES
    }
    write(ladders, options)
    kept = {rule: max(_lost(ladder, lambda rank: 0.0)[rank].mean for rank in RANKS) for rule, ladder in ladders.items()}
    return 0 if min(kept.values()) < 0.1 else 1


def _lost(ladder: Ladder, power: Callable[[int], float]) -> dict[int, Interval]:
    """Of each rank, what the anchor's rate costs, times the rank over the anchor's to some power."""
    rate = RATES[ladder.chosen(ANCHOR)]
    return {rank: ladder.lost(rank, rate * (rank / ANCHOR) ** power(rank)) for rank in RANKS}


def _reading(rule: str, slopes: Interval, lost: Interval) -> str:
    """Which account a measured slope is nearest to, and what keeping the rate costs at worst."""
    accounts = {"the proxy": PROXY[rule], "muA": ADAM[rule]}
    name = min(accounts, key=lambda name: abs(slopes.mean - accounts[name]))
    held = "holds" if slopes.low <= accounts[name] <= slopes.high else "leaves out"
    return (
        f"With {rule} the best rate moves by {slopes} doublings for each doubling of the rank, nearest to the "
        f"{accounts[name]:g} of {name}, which the interval {held}; keeping the rate of rank {ANCHOR} costs {lost} nats "
        "at worst."
    )


def _geometric(rates: Sequence[float]) -> str:
    return "{:.2g} [{:.2g}, {:.2g}]".format(*np.exp2(interval(list(np.log2(rates)))))


def _over_rates(ladder: Ladder) -> dict[str, dict[float, Interval]]:
    return {
        f"rank {rank}": {cell.rate: interval(ladder.selection[cell]) for cell in cells}
        for rank, cells in ladder.cells.items()
    }


def write(ladders: Mapping[str, Ladder], options: Options) -> None:
    """The page and its picture."""
    moved, kept, own, says = [], [], [], []
    for rule, ladder in ladders.items():
        best = [ladder.best(rank) for rank in RANKS]
        slopes = interval([slope(RANKS, seed) for seed in zip(*best, strict=True)])
        bests = [
            "{:.2g} [{:.2g}, {:.2g}]".format(*(1e-3 * 2**x for x in interval(np.log2(b) - np.log2(1e-3)))) for b in best
        ]
        says.append(_reading(rule, slopes, max(_lost(ladder, lambda rank: 0.0).values())))
        moved.append([rule, *bests, str(slopes), f"{PROXY[rule]:g}", f"{ADAM[rule]:g}"])
        ways: dict[str, float] = {"the anchor's": 0.0, "by the proxy": PROXY[rule], "by muA": ADAM[rule]}
        for way, power in ways.items():
            if way == "the anchor's" or power:
                lost = _lost(ladder, lambda rank, power=power: power)
                kept.append([rule, way, *(str(lost[rank]) for rank in RANKS if rank != ANCHOR)])
        places = {rank: ladder.cells[rank][ladder.chosen(rank)] for rank in RANKS}
        own.append([rule, *(f"{interval(ladder.report[c])} at {c.rate:g}" for c in places.values())])
    panels = {
        f"{rule}: nats per token": {
            f"rank {rank}": {cell.rate: interval(ladder.selection[cell]) for cell in ladder.cells[rank]}
            for rank in RANKS
        }
        for rule, ladder in ladders.items()
    }
    lines(panels, "learning rate", PAGES / "rate-transfer.png", "Rates over ranks, on the selection part")
    ranks = [f"rank {rank}" for rank in RANKS]
    text = [
        "When the rank of an adapter changes, does its best rate? Ranks 1, 8 and 64 on attention and dense layers of "
        "`assets/base_tasks` learn right answers of `edits` at level 2, 64 tokens a step, with eight rates and "
        f"under three rules for alpha that agree at rank {ANCHOR} (alpha {ALPHA:g}). Alpha ~ sqrt r with LoRA's scale "
        "alpha/r is rsLoRA with one alpha for all ranks.",
        "## Where the best rate is",
        "Of each seed by its own selection part, a parabola through the lowest point and its neighbours. By how many "
        "doublings the best rate moves when the rank doubles, measured, and as two accounts have it: the proxy keeps "
        "the first step, eta alpha^2 / r; muA is of Adam.",
        table(("rule", *ranks, "moves by", "proxy", "muA"), moved),
        "## What another rank's rate costs",
        f"Nats per token on the report part, beyond the rank's own rate, when the rate chosen at rank {ANCHOR} is "
        "kept, or moved as an account has it (between two rates that were tried, on a line; beyond them, the last).",
        table(("rule", "rate", *(name for rank, name in zip(RANKS, ranks, strict=True) if rank != ANCHOR)), kept),
        "## With a rate of one's own",
        "Nats per token on the report part, with the rate that is best on average on the selection part.",
        table(("rule", *ranks), own),
        "## What it says",
        f"The paper has both accounts, and has it that alpha in proportion to r transfers worst. {' '.join(says)}",
        LIMITS,
    ]
    page = Page("rate-transfer", "Rates over ranks", "python -m studies.rate_transfer", options.seeds, text)
    print(replace(page, picture="rate-transfer.png").write())


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
