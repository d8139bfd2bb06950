"""Times training and serving steps on the shape of the shipped base, random weights: medians of alternating repeats.

`pefx bench step_time`, or from the root `python -m benchmarks.step_time --rounds 20`. Compilation is left out.
"""

import statistics
import time

import jax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.steps.cases import ADAPTERS, MODEL, serving, training
from pefx.model import Base


def main(rounds: int = 10) -> None:
    """Times every case once a round, so that a slow spell of the machine falls on all of them."""
    base = Base(MODEL, nnx.Rngs(0))
    cases = {
        f"train, {ADAPTERS} adapters": training(base),
        "decode 8, base alone": serving(base, 8, adapters=False),
        "decode 8, 8 adapters": serving(base, 8, adapters=True),
        "decode 64, base alone": serving(base, 64, adapters=False),
        "decode 64, 8 adapters": serving(base, 64, adapters=True),
    }
    for step in cases.values():
        jax.block_until_ready(step())
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, step in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(step())
            times[name].append(time.perf_counter() - began)
    table = Table("step", title=f"median of {rounds} rounds on {jax.devices()[0].device_kind}", title_justify="left")
    for column in ("tokens", "ms", "tokens/s"):
        table.add_column(column, justify="right")
    for name, step in cases.items():
        median = statistics.median(times[name])
        table.add_row(name, str(step.tokens), f"{1e3 * median:.1f}", f"{step.tokens / median:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
