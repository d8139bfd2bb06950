"""The table and the pictures of `mixed_adapters`' results."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.mixed.comparisons import COMPARISONS, NAMES, PEFX, SKYRL, TORCH, Comparison

COLORS = {PEFX: "#1b6ca8", SKYRL: "#c8553d", TORCH: "#7a7a7a"}

Results = dict[str, list[list[float]]]  # tokens/s of each repetition, of each entry of the comparisons by name


def rates(results: Results, comparison: Comparison) -> list[float]:
    """The median of each entry."""
    return [statistics.median(found) for found in results[comparison.name]]


def ratio(results: Results, comparison: Comparison, entry: int, over: int) -> float:
    """One entry's rate over another's: the median of the ratios of each round."""
    found = results[comparison.name]
    return statistics.median(a / b for a, b in zip(found[entry], found[over], strict=True))


def markdown(results: Results, about: dict[str, Any]) -> str:
    """Two tables: rates, and ratios beside what is asked of them."""
    lines = [
        f"Made by `{about['command']}` at {about['commit']}, {about['date']}, on {about['machine']}. Tokens/s: medians",
        f"of {about['repeats']} alternating repetitions (lowest to highest); ratios: medians of each round's ratio.",
        "pefx adapts attention and every expert at full rank, SkyRL tx both with the rank divided by the experts, PEFT",
        "attention only.",
        "",
        "| work | who | tokens/s | lowest to highest |",
        "| --- | --- | ---: | ---: |",
    ]
    asked = ["", "| work | ratio | measured | asked for |", "| --- | --- | ---: | ---: |"]
    for comparison in COMPARISONS:
        if comparison.name not in results:
            continue
        found = results[comparison.name]
        for entry, rate, each in zip(comparison.entries, rates(results, comparison), found, strict=True):
            spread = f"{min(each):,.0f} to {max(each):,.0f}"
            lines.append(f"| {comparison.title} | {entry.name} | {rate:,.0f} | {spread} |")
        for target in comparison.targets:
            names = [comparison.entries[i].name for i in (target.entry, target.over)]
            measured = ratio(results, comparison, target.entry, target.over)
            verdict = "" if measured >= target.least else " (missed)"
            row = f"{names[0]} / {names[1]} | {measured:.2f}{verdict} | {target.least:.2f}"
            asked.append(f"| {comparison.title} | {row} |")
    return "\n".join(lines + asked) + "\n"


def draw(results: Results, out: Path) -> list[Path]:
    """Throughput against adapters in the batch and against resident slots; what is in the results of these."""
    drawn = []
    trained, generated = (_by_adapters(results, kind) for kind in ("train", "generate"))
    for name, title, label, points in (
        ("adapters-train", "Training, one step of a mixed batch", "adapters in the batch", trained),
        ("adapters-generate", "Generation from a mixed batch", "adapters in the batch (0: the bare base)", generated),
        ("resident", "Training with 4 adapters of a larger bank", "slots resident", _by_slots(results)),
    ):
        if points:
            drawn.append(_picture(out / f"{name}.png", title, label, points))
    return drawn


Points = dict[str, dict[int, list[float]]]


def _by_adapters(results: Results, kind: str) -> Points:
    points: Points = {}
    for comparison in COMPARISONS:
        for entry, rate in zip(comparison.entries, results.get(comparison.name, ())):
            case = entry.case
            if case.kind == kind and case.slots == case.adapters + 1:
                points.setdefault(entry.peer, {}).setdefault(case.adapters, []).extend(rate)
    return points


def _by_slots(results: Results) -> Points:
    points: Points = {}
    for comparison in COMPARISONS:
        for entry, rate in zip(comparison.entries, results.get(comparison.name, ())):
            case = entry.case
            if entry.peer != TORCH and case.kind == "train" and (case.adapters, case.sequences) == (4, 8):
                points.setdefault(entry.peer, {})[case.slots] = rate
    return points


def _picture(path: Path, title: str, label: str, points: Points) -> Path:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    places = sorted({place for line in points.values() for place in line})
    for peer, line in points.items():
        own = sorted(line)
        at = [places.index(place) for place in own]
        median = [statistics.median(line[place]) for place in own]
        low, high = ([m - min(line[p]) for p, m in zip(own, median)], [max(line[p]) - m for p, m in zip(own, median)])
        axes.errorbar(at, median, yerr=(low, high), marker="o", capsize=3, color=COLORS[peer], label=NAMES[peer])
    axes.set_yscale("log")
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set(title=title, xlabel=label, ylabel="tokens/s (log scale)")
    axes.grid(axis="y", alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
