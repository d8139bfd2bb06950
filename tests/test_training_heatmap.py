"""The heat map is a picture of the numbers it is given."""

from pathlib import Path

import numpy as np

from pefx.training.heatmap import draw_heatmap


def test_it_is_a_png_for_one_user_and_for_many_and_depends_on_the_numbers(tmp_path: Path) -> None:
    pictures = []
    for count, seed in ((1, 0), (8, 0), (8, 1)):
        rng = np.random.default_rng(seed)
        names = [f"user{index}" for index in range(count)]
        base = rng.uniform(2, 3, count)
        draw_heatmap(names, base, base[:, None] + rng.normal(0, 0.1, (count, count)), tmp_path / "map.png")
        pictures.append((tmp_path / "map.png").read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3


def test_no_difference_at_all_can_be_drawn(tmp_path: Path) -> None:
    draw_heatmap(["ann", "bob"], np.ones(2), np.ones((2, 2)), tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()
