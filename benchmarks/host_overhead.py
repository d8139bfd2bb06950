"""What the host does between two steps: seconds of planning and taking in, beside those of the step.

`pefx bench host_overhead`, or from the root `python -m benchmarks.host_overhead --steps 400`. 64 sequences decode on
the shipped base, each with an adapter of its own. The engine's own clocks are read first; then the same steps run under
cProfile, which slows them, for a table of where the host's time goes.
"""

import cProfile
import pstats
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.population.people import BASE, SPEC
from benchmarks.served.engines import Line, commit_adapters, engine_of, loaded, name_of
from pefx.config import ServeConfig
from pefx.families.config_json import read_config
from pefx.mesh import use_cores
from pefx.serving.requests import Request

PROMPT = 16
# Where the step itself is: not the host's work, though the host's thread waits in it.
DEVICE = ("mesh.py", "steps.py", "compiler.py")


@dataclass(frozen=True)
class Options:
    """How much."""

    sequences: int = 64
    steps: int = 200
    rows: int = 25
    """Of the profile."""
    logprobs: bool = False
    """Whether the requests ask for log-probabilities."""


def start(line: Line, options: Options, round: int) -> None:
    """Fills all places, and steps until every sequence decodes."""
    rng, vocabulary = np.random.default_rng(round), read_config(BASE).vocab_size
    spare = 2 * options.sequences  # steps in which the others take in their prompts
    for index in range(options.sequences):
        prompt = tuple(rng.integers(1, vocabulary, PROMPT).tolist())
        asked = Request(
            f"{round}-{index}",
            prompt,
            name_of(index),
            max_tokens=options.steps + spare,
            temperature=0.0,
            ignore_eos=True,
            logprobs=options.logprobs,
        )
        line.submit(asked)
    for _ in range(spare):
        line.engine.step()
        state = line.engine.state()
        if state.running == options.sequences and state.waiting == 0:
            break
    for _ in range(8):  # those that entered last take in their prompts
        line.engine.step()


def finish(line: Line) -> None:
    while not line.engine.idle:
        line.engine.step()


def read(line: Line) -> tuple[int, float, float]:
    """Steps so far, and seconds of host and device in them."""
    state = line.engine.state()
    return state.steps, state.host_seconds, state.step_seconds


def clocks(line: Line, steps: int) -> tuple[float, float]:
    """Host and device milliseconds of a step, by the engine's clocks."""
    before = read(line)
    for _ in range(steps):
        line.engine.step()
    count, host, device = (after - start for after, start in zip(read(line), before))
    return 1e3 * host / count, 1e3 * device / count


def profiled(line: Line, steps: int) -> pstats.Stats:
    """Profile of so many steps."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(steps):
        line.engine.step()
    profile.disable()
    return pstats.Stats(profile)


def profile_table(stats: pstats.Stats, steps: int, rows: int) -> Table:
    """The functions whose own time is longest, by step; without those that wait for the device."""
    found = []
    for (file, number, name), (_, calls, own, whole, _) in stats.stats.items():  # type: ignore[attr-defined]
        place = Path(file)
        if place.name not in DEVICE and "jax" not in place.parts and "jaxlib" not in file:
            where = f"{place.parent.name}/{place.name}:{number}" if number else ""
            found.append((own, whole, calls, f"{where} {name}".strip()))
    table = Table("function", title="microseconds of a step, under the profiler", title_justify="left")
    for column in ("calls", "own", "with what it calls"):
        table.add_column(column, justify="right")
    for own, whole, calls, name in sorted(found, reverse=True)[:rows]:
        table.add_row(name, f"{calls / steps:.1f}", f"{1e6 * own / steps:.0f}", f"{1e6 * whole / steps:.0f}")
    return table


def main(options: Options) -> None:
    """Two rounds with the same load: clocks, then the profile."""
    use_cores()
    console = Console(width=140)
    with ExitStack() as stack:
        catalog = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "catalog"
        commit_adapters(catalog, BASE, SPEC, range(options.sequences))
        config = ServeConfig(
            "host",
            str(BASE),
            str(catalog),
            slots=2 * options.sequences,
            sequences=options.sequences,
            max_rank=SPEC.rank,
        )
        line = stack.enter_context(engine_of(config, stack.enter_context(loaded(config))))
        start(line, options, 0)
        finish(line)  # all is compiled
        start(line, options, 1)
        host, device = clocks(line, options.steps)
        finish(line)
        start(line, options, 2)
        table = profile_table(profiled(line, options.steps), options.steps, options.rows)
    per_token = 1e3 * host / options.sequences
    console.print(
        f"{options.sequences} sequences, {options.steps} steps: host {host:.2f} ms, device {device:.2f} ms of a step "
        f"({100 * host / (host + device):.1f} % host, {per_token:.1f} microseconds a token)"
    )
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
