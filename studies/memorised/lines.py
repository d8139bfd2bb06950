"""Pictures of laws: means with their intervals over a logarithmic axis, a line for each case."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pefx.sweeping.intervals import Interval
from pefx.training.curves import FAINT, INK, save, style
from studies.rewarded.pictures import COLOURS

Line = Sequence[tuple[float, Interval]]  # (place, mean with its interval), from left to right
MARKS = ("o", "s", "^", "D", "v")


def lines(
    panels: Mapping[str, Mapping[str, Line]], path: Path, title: str, along: str, measure: str, level: float
) -> None:
    """A panel for each group of lines, all of the same scale; a case has the same colour in all. `level` is drawn."""
    figure = Figure(figsize=(4.8 * len(panels) + 0.6, 4.2), layout="constrained")
    cases = list(dict.fromkeys(case for group in panels.values() for case in group))
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, group) in zip(grid, panels.items(), strict=True):
        style(axes)
        axes.axhline(level, color=FAINT, linewidth=1.5, linestyle="--")
        for case, points in group.items():
            index = cases.index(case)
            means = np.asarray([found.mean for _, found in points])
            low, high = (np.asarray([getattr(found, end) for _, found in points]) for end in ("low", "high"))
            errors = np.maximum([means - low, high - means], 0)
            axes.errorbar(
                [place for place, _ in points], means, yerr=errors, label=case, color=COLOURS[index],
                marker=MARKS[index], markersize=4.5, linewidth=1.6, capsize=2,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        axes.legend(frameon=False, fontsize=8)
    figure.supylabel(measure, fontsize=9, color=INK)
    figure.supxlabel(along, fontsize=9, color=INK)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)
