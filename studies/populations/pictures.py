"""Pictures of populations: means with their intervals over a number."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pefx.sweeping.intervals import Interval
from pefx.sweeping.report import COLOURS
from pefx.training.curves import INK, save, style

Line = Mapping[float, Interval]
Panels = Mapping[str, Mapping[str, Line]]


APART = 1.5  # times the one before: labels that are nearer would lie on each other


def apart(numbers: Iterable[float]) -> list[float]:
    """Those of them, in order, whose labels have room."""
    found: list[float] = []
    for x in sorted(numbers):
        if not found or x >= APART * found[-1]:
            found.append(x)
    return found


def lines(panels: Panels, over: str, path: Path, title: str) -> None:
    """A panel for each measure, in it a line for each of its series, over a number on a scale of doublings.

    A series has the same look in every panel.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.9 * rows + 0.3), layout="constrained")
    for place, (measure, series) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        style(axes)
        for place_of_line, (name, line) in enumerate(series.items()):
            index = names.index(name)
            means = np.asarray([one.mean for one in line.values()])
            errors = np.asarray([[one.mean - one.low, one.high - one.mean] for one in line.values()]).T
            look = {"color": COLOURS[index % len(COLOURS)], "marker": "os^Dv"[index % 5], "markersize": 4}
            beside = [x * 1.04 ** (place_of_line - (len(series) - 1) / 2) for x in line]  # apart, so that bars are seen
            axes.errorbar(beside, means, yerr=np.maximum(errors, 0), label=name, capsize=2, linewidth=1.2, **look)
        marked = apart({x for line in series.values() for x in line})
        axes.set_xscale("log", base=2)
        axes.set_xticks(marked, [f"{x:g}" for x in marked])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(over, fontsize=9, color=INK)
        axes.set_title(measure, fontsize=10, color=INK, loc="left")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)
