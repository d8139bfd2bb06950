"""Curves are a picture of the journal's rows."""

from pathlib import Path

import numpy as np

from pefx.training.curves import draw_curves, series, smooth


def test_smoothing_keeps_constants_and_length() -> None:
    assert smooth(np.full(40, 2.5)).tolist() == [2.5] * 40
    assert np.ptp(smooth(np.tile([0.0, 1.0], 200))[30:-30]) < 0.05
    assert len(smooth(np.zeros(1))) == 1


def test_curves_are_a_png(tmp_path: Path) -> None:
    rows = [{"step": s, "kind": "train", "name": n, "loss": 3 - s / 10} for n in ("ann", "bob") for s in range(1, 9)]
    rows += [{"step": s, "kind": "heldout", "name": "ann", "loss": 3 - s / 20} for s in (0, 8)]
    draw_curves(rows, tmp_path / "curves.png", "run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    steps, losses = series(rows, "heldout", "ann")
    assert (steps.tolist(), losses.tolist()) == ([0, 8], [3.0, 2.6])
    draw_curves([], tmp_path / "none.png", "run")
    assert not (tmp_path / "none.png").exists()
