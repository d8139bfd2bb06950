"""Evaluations over the revisions of a policy as SVG: a panel for each metric, a line for each who measured it."""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pefx.store.views import Curve
from pefx.web.svg import element
from pefx.web.wording import number, revision_address

WIDTH, HEIGHT = 380.0, 190.0
RIGHT, TOP, BOTTOM = 16.0, 12.0, 26.0
DIGIT = 6.3  # the width of one, about
COLOURS = 6  # of lines in the stylesheet; the next ones are dashed
MOST_PANELS, MOST_LINES, MOST_POINTS = 24, 12, 400
MOST_DOTS = 50
MOST, LEAST = sys.float_info.max, 1e-290  # of numbers; smaller ones are drawn as zero


@dataclass(frozen=True)
class Line:
    """One who measured: the class of the line's colour, its name, its last value."""

    colour: str
    source: str
    last: str


@dataclass(frozen=True)
class Panel:
    """One metric: its picture and the key to its lines; `more` lines were left out."""

    name: str
    picture: Markup
    lines: tuple[Line, ...]
    more: int


def panels(curves: Sequence[Curve], policy: str) -> tuple[list[Panel], list[str]]:
    """A panel for each metric of `policy`, as many as are legible, and the names of those without one."""
    metrics: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        metrics[curve.name].append(curve)
    shown = list(metrics)[:MOST_PANELS]
    return [_panel(name, metrics[name], policy) for name in shown], list(metrics)[MOST_PANELS:]


def _panel(name: str, curves: list[Curve], policy: str) -> Panel:
    lines = curves[:MOST_LINES]
    numbers = [at for curve in lines for at, _ in curve.points]
    values = [value for curve in lines for _, value in curve.points if math.isfinite(value)]
    first, last = min(numbers), max(numbers)
    low, high, ticks = scale_of(min(values, default=0.0), max(values, default=1.0))
    left = 16 + DIGIT * max(len(text) for _, text in ticks)
    across = (WIDTH - left - RIGHT) / max(last - first, 1)

    def x(at: int) -> float:
        return left + (at - first) * across if last > first else (left + WIDTH - RIGHT) / 2

    def y(value: float) -> float:
        return TOP + (high / 2 - value / 2) / (high / 2 - low / 2) * (HEIGHT - TOP - BOTTOM)  # halves cannot overflow

    parts = [element("title", f"{name} over revisions {first} to {last}")]
    for tick, said in ticks:
        parts.append(element("line", class_="grid", x1=left, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick)))
        parts.append(element("text", said, class_="tick", x=left - 8, y=y(tick) + 3.5, text_anchor="end"))
    for tick in whole_ticks(first, last):
        parts.append(element("text", str(tick), class_="tick", x=x(tick), y=HEIGHT - 8, text_anchor="middle"))
    drawn = [_line(index, curve, policy, x, y) for index, curve in enumerate(lines)]
    picture = element("svg", *parts, *drawn, class_="curves", role="img", viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}")
    key = [Line(_colour(i), curve.source, number(curve.points[-1][1])) for i, curve in enumerate(lines)]
    return Panel(name, picture, tuple(key), len(curves) - len(lines))


def _colour(index: int) -> str:
    return f"line-{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _line(index: int, curve: Curve, policy: str, x, y) -> Markup:
    points = [(at, value) for at, value in thinned(curve.points) if math.isfinite(value)]
    if not points:
        return Markup("")
    way = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in points)
    dots = [
        element(
            "a",
            element("title", f"revision {at}: {curve.name} {value!r}, {curve.source}"),
            element("circle", cx=x(at), cy=y(value), r=3),
            href=revision_address(f"{policy}@{at}"),
        )
        for at, value in (points if len(points) <= MOST_DOTS else points[-1:])
    ]
    return element("g", element("path", d=f"M{way}"), *dots, class_=_colour(index))


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most so many points as can be told apart, the last one among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else points[(len(points) - 1) % stride :: stride]


def scale_of(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """(lowest, highest, ticks as (value, text)) of an axis around [low, high], its ticks at round numbers."""
    if max(abs(low), abs(high)) < LEAST:
        low = high = 0.0
    if high - low <= max(abs(low), abs(high)) * 1e-12:  # one value: some room around it
        room = abs(high) * 0.1 or 1.0
        low, high = max(low - room, -MOST), min(high + room, MOST)
    rough = high / 4 - low / 4
    if rough > MOST / 100:
        return low, high, [(low, f"{low:.3g}"), (high, f"{high:.3g}")]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    values = [index * step for index in range(first, last + 1)]
    return min(values[0], low), max(values[-1], high), list(zip(values, _texts(values, step), strict=True))


def _texts(values: Sequence[float], step: float) -> list[str]:
    """Ticks in as many digits as tell them apart."""
    largest = max(abs(value) for value in values)
    if largest >= 1e5 or step < 1e-4:
        digits = max(1, math.ceil(math.log10(largest / step)) + 1)
        return [f"{value:.{digits}g}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:  # 0.25
        decimals += 1
    return [f"{value:.{decimals}f}" for value in values]


def whole_ticks(first: int, last: int) -> list[int]:
    """Up to seven round whole numbers of [first, last], or the only one."""
    span = last - first
    step = next(
        power * factor for power in (10**p for p in range(12)) for factor in (1, 2, 5) if power * factor * 6 >= span
    )
    return list(range(-(-first // step) * step, last + 1, step))
