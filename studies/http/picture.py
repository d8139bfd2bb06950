"""What was seen of a server under load, and the picture of it."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from studies.http.load import Tally

SETTLED = 0.2  # of the time: after it memory should not grow


@dataclass(frozen=True)
class Seen:
    """Tallies by part; memory (seconds, MiB) under load, for the first `load` seconds, and while the rest is answered;
    capacity in requests/s; the client's share of a core.

    `cold`: reads that the first requests of ready adapters caused.
    """

    parts: dict[str, Tally]
    memory: list[tuple[float, float]]
    capacity: float
    client: float
    cold: float
    load: float

    def slope(self) -> float:
        """MiB a minute, by least squares over the load's time after `SETTLED`."""
        loaded = [(seconds, mib) for seconds, mib in self.memory if SETTLED * self.load <= seconds <= self.load]
        if len(loaded) < 3:
            return float("nan")
        seconds, mib = np.asarray(loaded).T
        return float(60 * np.polyfit(seconds, mib, 1)[0])

    def rest(self) -> float:
        """MiB that the memory grew by while the rest was answered."""
        return self.memory[-1][1] - max((mib for seconds, mib in self.memory if seconds <= self.load), default=0.0)


def draw(seen: Seen, path: Path) -> None:
    """Four panels: memory, first tokens of the quiet tenant, refusals, and time per token while adapters come."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    memory, first, refused, each = axes.flat
    if seen.memory:
        seconds, mib = np.asarray(seen.memory).T
        memory.plot(seconds / 60, mib, color="#1b6ca8")
    memory.set(title=f"Memory at twice the capacity: {seen.slope():+.2f} MiB a minute", xlabel="minutes", ylabel="MiB")
    memory.set_ylim(0, 1.2 * max((mib for _, mib in seen.memory), default=1))
    for name, label in (
        ("alone", "alone"),
        ("among", "beside everybody"),
        ("beside", "beside another's flood"),
        ("flood", "who floods"),
    ):
        distribution(first, seen.parts[name].first, label)
    first.set(title="Time to the first token", xlabel="ms", ylabel="share of requests", xscale="log")
    distribution(refused, seen.parts["overload"].refusals, "refused (429)")
    refused.axvline(50, color="#c8553d", linestyle="--", label="bound for 99 of 100")
    refused.set(title="Time to a refusal at twice the capacity", xlabel="ms", ylabel="share of refusals", xscale="log")
    for name, label in (("before", "before"), ("adding", "while adapters come"), ("after", "after")):
        distribution(each, seen.parts[name].each, label)
    each.set(title="Time per token at half the capacity", xlabel="ms", ylabel="share of requests")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        if panel is not memory:
            panel.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def distribution(axes: Axes, values: list[float], label: str) -> None:
    """Shares of `values` (seconds) up to each, in milliseconds."""
    if values:
        axes.plot(1e3 * np.sort(values), np.arange(1, len(values) + 1) / len(values), label=label)
