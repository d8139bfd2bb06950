"""Of adapters of as many bytes, which learns most?

    python -m studies.equal_bytes [--seeds 6]

LoRA of rank 1 everywhere against more rank at fewer places and other methods of the same size, and all of them along
the curve of what fewer or more bytes come to; each with the rate that is best for it on a selection part. Writes
docs/studies/equal-bytes.md with its picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pefx.adapters.methods.counting import stored_bytes
from pefx.config import AdapterSpec, ModelConfig, TaskConfig, TrainConfig
from pefx.families.config_json import read_config
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.populations.cells import UNTAUGHT, Cell, Marks, Population, better, grid, matched, shown
from studies.populations.pictures import lines
from studies.populations.subjects import rewarded, told
from studies.populations.verdicts import LIMITS, verdict
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.runs import BASE

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = AdapterSpec(alpha=16.0, targets=SITES)
EQUAL: Mapping[str, AdapterSpec] = {
    "lora-r1-all": replace(SPEC, rank=1),
    "lora-r3-qv": replace(SPEC, rank=3, targets=("q_proj", "v_proj")),
    "lora-r5-o": replace(SPEC, rank=5, targets=("o_proj",)),
    "lora-r2-o-dense": replace(SPEC, rank=2, targets=("o_proj", "gate_proj", "up_proj", "down_proj")),
    "dora-r1-qvo-up": replace(SPEC, method="dora", rank=1, targets=("q_proj", "v_proj", "o_proj", "up_proj")),
    "lora-xs-r16": replace(SPEC, method="lora_xs", rank=16),
    "tiny-lora-u256": replace(SPEC, method="tiny_lora", rank=16, units=256),
}
FEWER: Mapping[str, AdapterSpec] = {
    "tiny-lora-u2": replace(SPEC, method="tiny_lora", rank=2, units=2),
    "lora-xs-r4": replace(SPEC, method="lora_xs", rank=4),
    "ia3": replace(SPEC, method="ia3"),
    "vera-r16": replace(SPEC, method="vera", rank=16),
}
# Not of rank 1: two adapters of DoRA with one rank and other places must not be in one bank.
MORE: Mapping[str, AdapterSpec] = {
    "dora-r2-all": replace(SPEC, method="dora", rank=2),
    "lora-r4-all": replace(SPEC, rank=4),
    "lora-r16-all": replace(SPEC, rank=16),
}
CASES = {**EQUAL, **FEWER, **MORE}
FEW = ("tiny-lora-u2", "vera-r16")  # of fewer numbers, told and rewarded
# From rewards fewer learn, with fewer rates, to keep the study short.
REWARDED = ("lora-r1-all", "lora-r5-o", "dora-r1-qvo-up", "lora-xs-r16", "tiny-lora-u2", "ia3", "vera-r16")
RATES = {"told": (1e-3, 4e-3, 1.6e-2, 6.4e-2), "rewarded": (1e-3, 4e-3, 1.6e-2)}
# Fewer numbers want a higher rate, and the cores of many units a lower one.
FOURFOLD = {"tiny-lora-u2": 2, "vera-r16": 2, "ia3": 1, "tiny-lora-u256": -1}
CLAIMS = (
    "The paper has it that a few numbers do where rewards teach (TinyLoRA of 13) and fail where answers do, and that "
    "adapters belong everywhere, dense layers first; a contrary report (2512.23165) that rank 1 and VeRA are a "
    "bottleneck with rewards, and that DoRA beats LoRA."
)


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "equal_bytes"


def main(options: Options) -> int:
    """Exit status 1 unless LoRA of rank 1 learns, either way."""
    texts = read_file("configs/population_told.py", TrainConfig)
    texts = replace(texts, data=replace(texts.data, tokens_per_user=64, users_per_step=56))
    rewards = read_file("configs/population_rewarded.py", TrainConfig)
    rewards = replace(rewards, data=replace(rewards.data, users_per_step=42))
    subjects = told(options.out / "texts", TaskConfig("edits", level=2), 200, 32)
    ways = {
        "told: nats per token": (CASES, Population(texts, subjects, options.seeds, options.out / "told")),
        "rewarded: mean reward": (
            {case: CASES[case] for case in REWARDED},
            Population(rewards, rewarded(rewards), options.seeds, options.out / "rewarded"),
        ),
    }
    shape, panels, text, says, learned = read_config(str(BASE)), {}, [], [], True
    kept: dict[str, list[Interval]] = {}
    for way, (cases, population) in ways.items():
        more = way.startswith("rewarded")
        selection = population.selection(grid(cases, RATES["rewarded" if more else "told"], FOURFOLD))
        best = matched(selection, more)
        report = population.report([UNTAUGHT, *best.values()])
        panels[way] = _curve(report, shape)
        text += [f"## {way[0].upper()}{way[1:]}", f"The bare base: {interval(report[UNTAUGHT])}."]
        text.append(_table(best, selection, report, shape, more))
        says.append(_reading(way, best, report, more))
        for case in FEW:
            kept.setdefault(case, []).append(_kept(best[case], best["lora-r1-all"], report, more))
        learned = learned and interval(better(report[best["lora-r1-all"]], report[UNTAUGHT], more)).above_zero
    lines(panels, "bytes of an adapter, 16 bits a number", PAGES / "equal-bytes.png", "What an adapter's bytes come to")
    text = [_intro(), *text, "## What it says", *says, CLAIMS, *map(_few, kept, kept.values()), LIMITS]
    title, command = "Methods at equal bytes", "python -m studies.equal_bytes"
    print(Page("equal-bytes", title, command, options.seeds, text, "equal-bytes.png").write())
    return 0 if learned else 1


def _kept(cell: Cell, lora: Cell, report: Marks, more: bool) -> Interval:
    """The share of what LoRA of rank 1 gains over the base, seed by seed."""
    own, whole = (better(report[one], report[UNTAUGHT], more) for one in (cell, lora))
    return interval([a / b for a, b in zip(own, whole, strict=True)])


def _few(case: str, kept: Sequence[Interval]) -> str:
    """Whether few numbers do better where rewards teach."""
    told, rewarded = kept
    word = "in which more, cannot be told"
    if rewarded.low > told.high:
        word = "more where rewards teach, as the paper has it"
    if rewarded.high < told.low:
        word = "less where rewards teach, against the paper and with the contrary report"
    return (
        f"{case} reaches {told} of what LoRA of rank 1 gains where it is told, {rewarded} where it is rewarded: {word}."
    )


def _intro() -> str:
    return (
        "Of adapters of as many bytes, which learns most? The first seven have the bytes of LoRA of rank 1 at all "
        "matrices of attention and dense layers (5,120 numbers), within 5 %; the others fewer or more. They learn "
        "right answers of `edits` at level 2 over `assets/base_tasks`, 64 tokens a step, or are rewarded for `ends` "
        "with GRPO, 16 answers a step. Each has the rate that is best for it, on average over seeds, on a selection "
        "part; all figures are of another held-out part. Bytes are what a revision holds at 16 bits a number, without "
        "what all adapters of a base share."
    )


def _reading(way: str, best: Mapping[str, Cell], report: Marks, more: bool) -> str:
    """Who is better than LoRA of rank 1 everywhere, who is worse, who cannot be told from it."""
    lora, groups = report[best["lora-r1-all"]], {"better": [], "worse": [], "not to be told apart": []}
    for case, cell in best.items():
        if case != "lora-r1-all":
            found = interval(better(report[cell], lora, more))
            groups[verdict(found, *groups)].append(case)
    words = [f"{group}: {', '.join(cases)}" for group, cases in groups.items() if cases]
    return f"{way[0].upper()}{way[1:]}. Beside LoRA of rank 1 everywhere, {'; '.join(words)}."


def _curve(report: Marks, shape: ModelConfig) -> dict[str, dict[float, Interval]]:
    """By method, over bytes. LoRA at fewer places is a line of its own."""
    found: dict[str, dict[float, Interval]] = {}
    for cell, marks in report.items():
        if cell is not UNTAUGHT:
            name = cell.adapter.method.replace("_", " ")
            name = name if cell.case.endswith("-all") or name not in ("lora", "dora") else f"{name}, some places"
            found.setdefault(name, {})[float(stored_bytes(shape, cell.adapter))] = interval(marks)
    return {name: dict(sorted(line.items())) for name, line in found.items()}


def _table(best: Mapping[str, Cell], selection: Marks, report: Marks, shape: ModelConfig, more: bool) -> str:
    lora, rows = best["lora-r1-all"], []
    for case, cell in best.items():
        against = "-" if cell is lora else str(interval(better(report[cell], report[lora], more)))
        held = f"{stored_bytes(shape, cell.adapter):,}"
        rows.append([case, held, shown(cell, selection), str(interval(report[cell])), against])
    return table(("adapter", "bytes", "rate", "mean", "better than LoRA of rank 1 by"), rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
