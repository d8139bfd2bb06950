"""From where should LoRA start, at rank 1 and 16, by answers and by rewards?

    python -m studies.starts [--seeds 6]

Seven starts, each with the rate that is best for it on a selection part. Writes docs/studies/starts.md with its
picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from pefx.config import TaskConfig, TrainConfig
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.populations.cells import UNTAUGHT, Cell, Marks, Population, better, grid, matched, shown
from studies.populations.pictures import lines
from studies.populations.subjects import rewarded, told
from studies.populations.verdicts import LIMITS, verdict
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table

STARTS = ("default", "minor", "mica", "olora_tail", "olora", "pissa", "milora")
RANKS = (1, 16)
# Of rank 16 fewer learn from rewards, to keep the study short.
REWARDED: Mapping[int, tuple[str, ...]] = {1: STARTS, 16: ("default", "olora_tail", "olora", "pissa")}
RATES = {"told": (2.5e-4, 1e-3, 4e-3, 1.6e-2), "rewarded": (1e-3, 4e-3, 1.6e-2)}
FOURFOLD = {"told": {}, "rewarded": {"olora": -1, "pissa": -1}}  # starts of long factors want a lower rate
CLAIMS = (
    "The paper has it, of rewards, that OLoRA-tail beats the default start, at rank 1 above all, and that OLoRA and "
    "PiSSA collapse. Where a start is said to be told from the default, its interval leaves out 0."
)


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "starts"
    ways: tuple[Literal["told", "rewarded"], ...] = ("told", "rewarded")


def cells(config: TrainConfig, rank: int, starts: Sequence[str], way: str) -> list[Cell]:
    """Alpha is the same for all."""
    cases = {f"r{rank}-{start}": replace(config.adapter, rank=rank, init=start) for start in starts}
    return grid(cases, RATES[way], {f"r{rank}-{start}": power for start, power in FOURFOLD[way].items()})


def main(options: Options) -> int:
    """Exit status 1 unless the default start learns, everywhere."""
    texts = read_file("configs/population_told.py", TrainConfig)
    texts = replace(texts, data=replace(texts.data, tokens_per_user=64, users_per_step=56))
    rewards = read_file("configs/population_rewarded.py", TrainConfig)
    rewards = replace(rewards, data=replace(rewards.data, users_per_step=66))
    subjects = told(options.out / "texts", TaskConfig("edits", level=2), 200, 32)
    ways = {
        "told": Population(texts, subjects, options.seeds, options.out / "told"),
        "rewarded": Population(rewards, rewarded(rewards), options.seeds, options.out / "rewarded"),
    }
    text, panels, says, learned = [], {}, [], True
    for way in options.ways:
        population = ways[way]
        more = way == "rewarded"
        wanted = {rank: REWARDED[rank] if more else STARTS for rank in RANKS}
        every = [cell for rank in RANKS for cell in cells(population.config, rank, wanted[rank], way)]
        selection = population.selection(every)
        best = matched(selection, more)
        report = population.report([UNTAUGHT, *best.values()])
        for rank in RANKS:
            title = f"{way}, rank {rank}: {'mean reward' if more else 'nats per token'}"
            names = [f"r{rank}-{start}" for start in wanted[rank]]
            panels[title] = {_start(name): _over_rates(name, selection) for name in names}
            text += [f"## {title[0].upper()}{title[1:]}", f"The bare base: {interval(report[UNTAUGHT])}."]
            text.append(_table([best[name] for name in names], selection, report, more))
            own = {_start(name): best[name] for name in names}
            says += [_reading(title, own, report, more), _at_one_rate(title, own["default"], selection)]
            gain = interval(better(report[best[f"r{rank}-default"]], report[UNTAUGHT], more))
            learned = learned and gain.above_zero
    lines(panels, "learning rate", PAGES / "starts.png", "Starts over rates, on the selection part")
    text = [_intro(), *text, "## What it says", CLAIMS, *says, LIMITS]
    command = " ".join(["python -m studies.starts", *(["--ways", *options.ways] if len(options.ways) < 2 else [])])
    print(Page("starts", "Starts of LoRA", command, options.seeds, text, "starts.png").write())
    return 0 if learned else 1


def _intro() -> str:
    return (
        "From where should LoRA start? Seven starts at rank 1 and 16, alpha 16, on attention and dense layers of "
        "`assets/base_tasks`. They learn right answers of `edits` at level 2, 64 tokens a step, or are rewarded for "
        "`ends` with GRPO, 16 answers a step (at rank 16 four of the starts). Each has the rate that is best for "
        "it, on average over seeds, on a selection part; the tables are of another held-out part, the picture "
        "shows all rates on the selection part. Every start is the base itself, to rounding."
    )


def _reading(title: str, best: Mapping[str, Cell], report: Marks, more: bool) -> str:
    """What this says of the paper's claims, which are of rewards: OLoRA-tail beats the default, at rank 1 above all;
    OLoRA and PiSSA collapse.
    """
    default, words = report[best["default"]], []
    for start in (name for name in ("olora_tail", "olora", "pissa") if name in best):
        found, gain = (interval(better(report[best[start]], other, more)) for other in (default, report[UNTAUGHT]))
        told = verdict(found, "is better than the default", "is worse than the default", "cannot be told from it")
        kept = verdict(gain, "", "; it is worse than the base", "; it does not learn")
        words.append(f"{start} {told} ({found}){kept}")
    return f"{title[0].upper()}{title[1:]}. With a rate each, {'; '.join(words)}."


def _at_one_rate(title: str, default: Cell, selection: Marks) -> str:
    """What starts come to with the default's rate, as a comparison with one rate for all would have it."""
    rank = default.case.split("-", 1)[0]
    found = [
        f"{_start(cell.case)} {interval(marks)}"
        for cell, marks in selection.items()
        if cell.rate == default.rate and cell.case.split("-", 1)[0] == rank
    ]
    told = f"all with the default's rate, {default.rate:g}, on the selection part: {', '.join(found)}"
    return f"{title[0].upper()}{title[1:]}, {told}."


def _start(name: str) -> str:
    return name.split("-", 1)[1]


def _over_rates(name: str, selection: Marks) -> dict[float, Interval]:
    return {cell.rate: interval(marks) for cell, marks in selection.items() if cell.case == name}


def _table(best: Sequence[Cell], selection: Marks, report: Marks, more: bool) -> str:
    default, rows = best[0], []
    for cell in best:
        against = "-" if cell is default else str(interval(better(report[cell], report[default], more)))
        rows.append([_start(cell.case), shown(cell, selection), str(interval(report[cell])), against])
    return table(("start", "rate", "mean", "better than the default by"), rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
