"""Pictures of studies: means with their intervals, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pefx.sweeping.intervals import Interval
from pefx.training.curves import INK, save, style

COLOURS = ("#3b82a0", "#d1495b", "#7a9e3b", "#b07aa1", "#e0a030")


def bars(panels: Mapping[str, Mapping[str, Mapping[str, Interval]]], path: Path, title: str) -> None:
    """A panel for each measure; in it a group of bars for each case, one bar for each of its series."""
    figure = Figure(figsize=(5.2 * len(panels) + 0.6, 4.2), layout="constrained")
    for axes, (measure, cases) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style(axes)
        names = list(dict.fromkeys(name for series in cases.values() for name in series))
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            places = [at for at, series in enumerate(cases.values()) if name in series]
            found = [series[name] for series in cases.values() if name in series]
            means = np.asarray([one.mean for one in found])
            errors = np.asarray([[one.mean - one.low for one in found], [one.high - one.mean for one in found]])
            where = np.asarray(places) + (index - (len(names) - 1) / 2) * width
            label = name if len(names) > 1 else None
            axes.bar(where, means, width, yerr=np.maximum(errors, 0), color=COLOURS[index], label=label, capsize=2)
        axes.set_xticks(range(len(cases)), list(cases), rotation=25, ha="right")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(measure, fontsize=10, color=INK, loc="left")
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)
