"""Where the time of a step goes: a profile of training and decode steps on the shipped base's shape, by part.

`pefx bench step_cost`, or from the root `python -m benchmarks.step_cost --steps 20`. Each operation's time is counted
for the part of pefx whose source line it came from; operations that run side by side count each.
"""

import collections
import tempfile
from pathlib import Path

import jax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.steps.attribution import OTHER, parts_of
from benchmarks.steps.cases import ADAPTERS, MODEL, Step, serving, training
from pefx.model import Base


def costs(step: Step, steps: int) -> dict[str, float]:
    """Milliseconds of each part in one step, the mean of `steps` after a warm-up."""
    for _ in range(2):
        jax.block_until_ready(step())
    parts = parts_of(step.compiled_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                jax.block_until_ready(step())
        profile = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    total: dict[str, float] = collections.defaultdict(float)
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in parts:
                    total[parts[event.name]] += event.duration_ns / 1e6 / steps
    return total


def main(steps: int = 10) -> None:
    """Prints a table for each kind of step."""
    base = Base(MODEL, nnx.Rngs(0))
    cases = {
        f"train, {ADAPTERS} adapters": training(base),
        "decode 8, 8 adapters": serving(base, 8, adapters=True),
        "decode 64, 8 adapters": serving(base, 64, adapters=True),
    }
    for name, step in cases.items():
        found = costs(step, steps)
        whole = sum(found.values())
        table = Table("part", title=f"{name}: {step.tokens} tokens, {whole:.1f} ms of operations", title_justify="left")
        table.add_column("ms", justify="right")
        table.add_column("share", justify="right")
        for part, time in sorted(found.items(), key=lambda item: (item[0] == OTHER, -item[1])):
            table.add_row(part, f"{time:.2f}", f"{100 * time / whole:.0f} %")
        Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
