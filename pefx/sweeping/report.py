"""What a sweep found, as a table, a picture and the best cell."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pefx.config import Record
from pefx.sweeping.cells import Result
from pefx.sweeping.transfer import at
from pefx.training.curves import INK, save, style
from pefx.training.journal import Measure

COLOURS = ("#3b82a0", "#d1495b", "#7a9e3b", "#b07aa1", "#e0a030", "#5b6770", "#c77d3c", "#2f6b4f")
UNITS: dict[Measure, str] = {"reward": "reward", "nats_per_token": "nats per token"}


def write(found: Sequence[Result], measure: Measure, folder: Path) -> dict[str, Path]:
    """Writes `sweep.md`, `sweep.png` and `best.json`, each whole or not at all; `found` is best first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("sweep.md", "sweep.png", "best.json")}
    best = {"record": asdict(found[0].cell.record), "measure": measure, "mean": found[0].mean}
    best |= {"values": list(found[0].values)}
    _put(paths["sweep.md"], table(found, measure))
    _put(paths["best.json"], json.dumps(best, indent=2) + "\n")
    draw(found, measure, paths["sweep.png"])
    return paths


def _put(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def table(found: Sequence[Result], measure: Measure) -> str:
    """A row a cell in Markdown, best first."""
    lines = [f"| adapter | learning rate | updates | {UNITS[measure]} |", "| --- | --- | --- | --- |"]
    for one in found:
        rate, came_to = one.cell.record.learning_rate, one.spread or f"{one.mean:.3f}"
        lines.append(f"| {one.cell.label} | {rate:g} | {one.updates} | {came_to} |")
    return "\n".join(lines) + "\n"


def elsewhere(record: Record, ranks: Sequence[int]) -> str:
    """What a record means at other ranks, a line each, with the rules that say so. Raises PefxError like `at`."""
    lines = [f"by alpha '{record.scaling.alpha}', rate '{record.scaling.rate}':"]
    for rank in ranks:
        own = at(record, rank)
        lines.append(f"  rank {rank}: alpha {own.adapter.alpha:.6g}, learning rate {own.learning_rate:.6g}")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[Result], measure: Measure, path: Path) -> None:
    """A line for each adapter, over learning rates; bars are intervals over seeds, crosses cells that were stopped."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    style(axes)
    for index, label in enumerate(dict.fromkeys(one.cell.label for one in found)):
        own = sorted((one for one in found if one.cell.label == label), key=lambda one: one.cell.record.learning_rate)
        rates, means = [one.cell.record.learning_rate for one in own], np.asarray([one.mean for one in own])
        spreads = [one.spread for one in own]
        errors = np.asarray([[m - s.low, s.high - m] if s else [0, 0] for m, s in zip(means, spreads, strict=True)]).T
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(rates, means, yerr=np.maximum(errors, 0), label=label, color=colour, marker="o", capsize=2)
        early = [one for one in own if one.updates < found[0].updates]
        places = [one.cell.record.learning_rate for one in early], [one.mean for one in early]
        axes.plot(*places, "x", color=INK, markersize=9)
    every = sorted({one.cell.record.learning_rate for one in found})
    axes.set_xscale("log")
    axes.set_xticks(every, [f"{rate:g}" for rate in every])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate", fontsize=9, color=INK)
    axes.set_title(f"Held out, {UNITS[measure]}", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
