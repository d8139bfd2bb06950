"""The curves of a run as one PNG: a small panel per user, the same axes in all, in training and held out.

Shown is the loss, in nats per token; of a run in which anyone is rewarded, the rewards of those who are.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, TRAIN, HELDOUT = "#22303c", "#d7dde2", "#3b82a0", "#d1495b"
PANELS = 24


def style(axes: Axes) -> None:
    """The look of all pefx pictures: no box, faint grid, quiet ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(True, color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=150, facecolor="white")
    partial.replace(path)


def series(rows: Sequence[dict[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, what is shown) of one name and kind."""
    shown = "reward" if any("reward" in row for row in rows if row["name"] == name) else "loss"
    chosen = [(row["step"], row[shown]) for row in rows if row["kind"] == kind and row["name"] == name]
    steps, losses = zip(*chosen, strict=True) if chosen else ((), ())
    return np.asarray(steps, float), np.asarray(losses, float)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Moving mean over about an eighth of the curve (51 steps at most); one-sided at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    index, reach = np.arange(len(losses)), min(len(losses) // 16 + 1, 25)
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(losses))
    return (sums[high] - sums[low]) / (high - low)


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw `rows` of a journal to `path`, the first `PANELS` names of it; nothing when nothing was trained."""
    rewarded = any("reward" in row for row in rows)
    rows = [row for row in rows if not rewarded or "reward" in row]
    names = list(dict.fromkeys(row["name"] for row in rows if row["kind"] == "train"))
    if not names:
        return
    shown = names[:PANELS]
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    width, height = (9.0, 5.2) if len(shown) == 1 else (3.1 * columns + 0.6, 2.3 * lines + 1.1)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    low, high = _range(rows, shown)
    for index, axes in enumerate(grid.flat):
        if index >= len(shown):
            axes.set_visible(False)
            continue
        _panel(axes, rows, shown[index], single=len(shown) == 1)
        axes.set_ylim(low, high)
        if index >= len(shown) - columns:
            axes.tick_params(labelbottom=True)
    more = f" (first {PANELS} of {len(names)})" if len(names) > PANELS else ""
    figure.suptitle(f"{title}{more}", fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supylabel("reward" if rewarded else "nats per token", fontsize=9, color=INK)
    figure.supxlabel("step", fontsize=9, color=INK)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    save(figure, path)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, single: bool) -> None:
    style(axes)
    steps, losses = series(rows, "train", name)
    axes.plot(steps, losses, color=TRAIN, alpha=0.25, linewidth=0.9)
    axes.plot(steps, smooth(losses), color=TRAIN, linewidth=1.8, label="training")
    steps, losses = series(rows, "heldout", name)
    if len(steps):
        axes.plot(steps, losses, color=HELDOUT, linewidth=1.4, marker="o", markersize=4, label="held out")
        for index in {0, len(steps) - 1}:
            axes.annotate(
                f"{losses[index]:.2f}",
                (steps[index], losses[index]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="left" if index == 0 else "right",
                fontsize=8,
                fontweight="bold",
                color=HELDOUT,
            )
    if not single:
        axes.set_title(name, fontsize=10, color=INK, loc="left", pad=4)
    axes.margins(x=0.03)


def _range(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[float, float]:
    """Limits that hold all held-out points and smoothed curves, not the extremes of single micro-batches."""
    lines = [smooth(series(rows, "train", name)[1]) for name in names]
    points = [series(rows, "heldout", name)[1] for name in names]
    every = np.concatenate(lines + points)
    low, high = float(every.min()), float(every.max())
    room = max(high - low, 0.1) * 0.12
    return max(0.0, low - room), high + room
