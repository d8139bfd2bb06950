"""Curves: axes with round ticks, one panel a metric, and numbers of every size."""

import itertools
import math
import sys
from xml.etree import ElementTree

import pytest

from pefx.store.views import Curve
from pefx.web.curve_chart import (
    HEIGHT,
    MOST_LINES,
    MOST_PANELS,
    MOST_POINTS,
    WIDTH,
    panels,
    scale_of,
    thinned,
    whole_ticks,
)
from tests.web_catalog import SCRIPT


def curve(name: str, source: str, values: list[float]) -> Curve:
    return Curve(name, source, tuple(enumerate(values, 1)))


def test_a_panel_for_each_metric() -> None:
    curves = [curve("loss", "training", [3.0, 2.0, 1.0]), curve("loss", "judge", [3.5]), curve("win", "judge", [0.25])]
    shown, without = panels(curves, "users/ann")
    assert [panel.name for panel in shown] == ["loss", "win"]
    assert without == []
    assert [(line.source, line.last, line.colour) for line in shown[0].lines] == [
        ("training", "1", "line-0"),
        ("judge", "3.5", "line-1"),
    ]
    picture = ElementTree.fromstring(str(shown[0].picture))
    assert [a.get("href") for a in picture.iter("a")] == [f"/revision/users/ann@{n}" for n in (1, 2, 3, 1)]
    xs = [float(dot.get("cx", 0)) for dot in picture.iter("circle")]
    ys = [float(dot.get("cy", 0)) for dot in picture.iter("circle")]
    assert xs[0] < xs[1] < xs[2]
    assert ys[0] < ys[1] < ys[2]  # up is more
    assert ys[3] < ys[0]


@pytest.mark.parametrize(
    "values",
    [
        *([1.0], [0.0], [-5.0, 5.0], [1e-320], [sys.float_info.max, -sys.float_info.max], [1e300, 1e-300]),
        *([2.0] * 300, [1e9 + n for n in range(5)], [math.inf], [math.nan, 1.0], [0.1 + 0.2, 0.3], [5e-324, 0.0]),
        [1e16, 1e16 + 2],
    ],
)
def test_numbers_of_every_size_stay_in_the_picture(values: list[float]) -> None:
    (panel,), _ = panels([curve("x", "y", values)], "a")
    picture = ElementTree.fromstring(str(panel.picture))
    for dot in picture.iter("circle"):
        assert 0 <= float(dot.get("cx", -1)) <= WIDTH
        assert 0 <= float(dot.get("cy", -1)) <= HEIGHT
    for path in picture.iter("path"):
        assert "nan" not in str(path.get("d"))
        assert "inf" not in str(path.get("d"))
    ticks = [text.text for text in picture.iter("text")]
    assert all(len(str(tick)) <= 14 for tick in ticks), ticks


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (2.44, 2.5, ["2.44", "2.46", "2.48", "2.50"]),
        (-3.0, 7.0, ["-5.0", "-2.5", "0.0", "2.5", "5.0", "7.5"]),
        (0.0, 1e6, ["0", "2.5e+05", "5e+05", "7.5e+05", "1e+06"]),
        (12.0, 47.0, ["10", "20", "30", "40", "50"]),
    ],
)
def test_ticks_are_round_and_differ(low: float, high: float, texts: list[str]) -> None:
    first, last, ticks = scale_of(low, high)
    assert first <= low <= high <= last
    assert [text for _, text in ticks] == texts


def test_ticks_of_any_range_differ() -> None:
    for power, factor in itertools.product(range(-12, 13), (1.0, 1.7, 3.3, 9.9)):
        for low in (0.0, -factor * 10.0**power, 100.0 * 10.0**power):
            _, _, ticks = scale_of(low, low + factor * 10.0**power)
            assert 2 <= len(ticks) <= 7
            assert len({text for _, text in ticks}) == len(ticks), ticks


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 2), (1, 13), (3, 200), (1, 10**9)])
def test_whole_ticks(first: int, last: int) -> None:
    ticks = whole_ticks(first, last)
    assert 1 <= len(ticks) <= 7
    assert all(first <= tick <= last for tick in ticks)


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    points = [(n, float(n)) for n in range(1, 10_001)]
    thin = thinned(points)
    assert MOST_POINTS * 0.8 < len(thin) <= MOST_POINTS
    assert thin[-1] == points[-1]
    assert thinned(points[:5]) == points[:5]


def test_many_metrics_and_lines_are_told() -> None:
    curves = [curve(f"m{n:03}", "t", [1.0]) for n in range(MOST_PANELS + 2)]
    curves += [curve("m000", f"scorer {n}", [2.0]) for n in range(MOST_LINES + 4)]
    shown, without = panels(curves, "a")
    assert len(shown) == MOST_PANELS
    assert without == [f"m{MOST_PANELS:03}", f"m{MOST_PANELS + 1:03}"]
    assert (len(shown[0].lines), shown[0].more) == (MOST_LINES, 5)
    assert shown[0].lines[-1].colour == "line-5 dashed"
    assert panels([], "a") == ([], [])


def test_markup_in_names_is_text() -> None:
    (panel,), _ = panels([curve(SCRIPT, SCRIPT, [1.0, 2.0])], "a")
    assert "<script" not in panel.picture
