"""Every adapter on every user's held-out text, as one picture: does personal mean personal?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pefx.training.curves import FAINT, INK, save


def draw_heatmap(names: Sequence[str], base: np.ndarray, scores: np.ndarray, path: Path) -> None:
    """Draw nats per token: `base[i]` of text i under the base, `scores[i, j]` under adapter j.

    Colour is the difference. Own adapters lie on the diagonal and are framed.
    """
    count = len(names)
    change = scores - base[:, None]
    figure = Figure(figsize=(0.78 * count + 4.4, 0.56 * count + 2.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, count], sharey=True)
    _plain(left, base[:, None], ["base"], names)
    left.imshow(np.zeros((count, 1)), cmap="Greys", vmin=0, vmax=8, aspect="auto")
    _write(left, base[:, None], np.zeros((count, 1)), "{:.3f}")
    _plain(right, change, names, names)
    reach = max(float(np.abs(change).max()), 1e-6)
    image = right.imshow(change, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -reach, reach), aspect="auto")
    _write(right, change, np.abs(change) / reach, "{:+.3f}")
    for index in range(count):
        frame = Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.8)
        right.add_patch(frame)
    right.set_xlabel("adapter trained on", color=INK, fontsize=10)
    left.set_ylabel("held-out text of", color=INK, fontsize=10)
    bar = figure.colorbar(image, ax=right, fraction=0.03, pad=0.02)
    bar.set_label("nats per token against the base (blue: better)", color=INK, fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=INK, labelsize=8, length=0)
    figure.suptitle("One base, many adapters", fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)


def _plain(axes: Axes, values: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> None:
    """A grid of cells with white gaps, its names, and no box."""
    axes.set_xticks(range(len(columns)), columns, rotation=35 if len(columns) > 1 else 0, ha="right")
    if len(columns) == 1:
        axes.set_xticks([0], columns, ha="center")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.set_facecolor(FAINT)


def _write(axes: Axes, values: np.ndarray, darkness: np.ndarray, form: str) -> None:
    """Each cell's number, white on dark cells."""
    for (row, column), value in np.ndenumerate(values):
        color = "white" if darkness[row, column] > 0.6 else INK
        weight = "bold" if row == column and values.shape[1] > 1 else "normal"
        axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=color, fontweight=weight)
