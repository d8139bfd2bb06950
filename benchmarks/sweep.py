"""A sweep of 64 cells as one population, against the 64 runs one after another.

`pefx bench sweep`, or from the root `python -m benchmarks.sweep --rounds 2`. A cell is a rank with a rate, which learns
from a package of the standard library over the shipped base, a few lines a step, as a personal adapter's step has.
Three figures. Steps alone, compiled. Whole runs in one process, each from its files to its revision, with and without
what the first of each rank compiles. Commands: all that a person waits for, `pefx sweep` once against `pefx train` for
each cell (of which `--sample` are timed, spread over the cells). Sides take turns; every cell must end in the same bits
on both. Seconds of processors are told beside, which what else runs on the machine moves less.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    Scaling,
    SweepConfig,
    TrainConfig,
    UserConfig,
)
from pefx.data.stdlib_text import build
from pefx.mesh import on_mesh, use_cores
from pefx.store.catalog import Catalog
from pefx.sweeping.cells import population
from pefx.training.adapters import AdapterTraining
from pefx.training.loop import Outcome

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "logging"
FILE = """from pefx.config import *

config = {config!r}
"""


@dataclass(frozen=True)
class Options:
    """How much."""

    ranks: tuple[int, ...] = (4, 16)
    rates: int = 32
    """Rates, each a fifth larger than the one before: with two ranks 64 cells."""
    steps: int = 10
    rounds: int = 2
    sample: int = 4
    """Cells that are timed as commands of their own, once (0: no commands are)."""
    tokens: int = 64
    """Of a cell's step."""
    users_per_step: int = 64
    """Cells of a step."""
    data: int = 1
    """Shards of the population; a core each, on CPU."""
    base: Path = ROOT / "assets" / "base"


class Spent(NamedTuple):
    """Seconds, and seconds of processors: what others do on the machine stretches the first."""

    seconds: float
    processor: float


class Side(NamedTuple):
    """What a side takes: whole runs of all cells, and their steps alone."""

    whole: Spent
    steps: Spent


def sweep_config(text: Path, output: str, own: Options) -> SweepConfig:
    """The sweep of all cells, whose lines are in `text`."""
    user = UserConfig("cell", str(text / "train.jsonl"), str(text / "heldout.jsonl"))
    page = min(own.tokens, 32)
    run = TrainConfig(
        name="sweep",
        output=output,
        base=str(own.base),
        catalog=f"{output}/catalog",
        users=(user,),
        data=DataConfig(own.tokens, own.tokens, own.users_per_step, heldout_tokens=512),
        checkpoint=CheckpointConfig(every=0),
        mesh=MeshConfig(data=own.data),
        page_size=page,
        steps=own.steps,
    )
    rates = tuple(1e-4 * 1.2**index for index in range(own.rates))
    adapters, scaling = (AdapterSpec(rank=8, alpha=16.0),), Scaling("by_rank", "unchanged")
    return SweepConfig("sweep", run, adapters, rates, scaling, own.ranks)


def runs(together: bool, text: Path, output: str, own: Options) -> list[TrainConfig]:
    """The runs of a side: the population, or each cell as a user of its own run, all with one catalog."""
    whole = population(sweep_config(text, output, own))
    if together:
        return [whole]
    alone = replace(whole, mesh=MeshConfig(data=1))
    return [replace(alone, output=f"{output}/{index}", users=(user,)) for index, user in enumerate(whole.users)]


def now() -> Spent:
    """Both clocks."""
    return Spent(time.perf_counter(), time.process_time())


def since(begun: Spent) -> Spent:
    """What both clocks say since then."""
    return Spent(time.perf_counter() - begun.seconds, time.process_time() - begun.processor)


def total(parts: Iterable[Spent]) -> Spent:
    """The sum."""
    return Spent(*map(sum, zip(*parts, strict=True)))


def trained(config: TrainConfig) -> Side:
    """A run from its files to its revisions, without a journal and checkpoints."""
    begun = now()
    with on_mesh(config.mesh):
        trainee = AdapterTraining(config, config.mesh)
        evaluations = {0: trainee.evaluate()}
        before = now()
        for step in range(trainee.steps):
            trainee.report(step, trainee.advance(step))
        steps = since(before)
        evaluations[trainee.steps] = trainee.evaluate()
        trainee.commit(Outcome(0, evaluations, 0.0, 0.0))
    return Side(since(begun), steps)


def hashes(output: str, own: Options) -> dict[str, str]:
    """The content hash of each cell, by name."""
    catalog = Catalog.open(f"{output}/catalog", read_only=True)
    users = population(sweep_config(Path(), output, own)).users
    return {user.name: catalog.get(user.name).content_hash for user in users}


def measured(text: Path, own: Options, folder: str) -> tuple[dict[bool, Spent], dict[bool, list[Side]]]:
    """By side: what a first run of one step of each shape takes, which compiles; and the sides, round by round.
    Ends the program where a cell has not the same bits on both.
    """
    first: dict[bool, Spent] = {}
    found: dict[bool, list[Side]] = {True: [], False: []}
    for together in (True, False):
        shapes = {run.users[0].adapter: run for run in runs(together, text, f"{folder}/shapes-{together}", own)}
        first[together] = total(trained(replace(run, steps=1)).whole for run in shapes.values())
        told("first", together, first[together])
    for turn in range(own.rounds):
        for together in (True, False) if turn % 2 == 0 else (False, True):
            parts = [trained(run) for run in runs(together, text, f"{folder}/{turn}-{together}", own)]
            side = Side(*map(total, zip(*parts, strict=True)))
            found[together].append(side)
            told(f"round {turn}", together, side)
        if hashes(f"{folder}/{turn}-True", own) != hashes(f"{folder}/{turn}-False", own):
            sys.exit("a cell of the population is not, to the bit, its own run")
    return first, found


def compiling(own: Options, together: bool, first: Spent, sides: Sequence[Side]) -> Spent:
    """What compiling takes: the first runs of one step, less what such runs take of a side that is compiled."""
    shapes = 1.0 if together else 1 / own.rates  # of all runs
    parts = []
    for clock in (0, 1):
        whole, steps = (statistics.median(side[part][clock] for side in sides) for part in (0, 1))
        parts.append(first[clock] - shapes * (whole - steps + steps / own.steps))
    return Spent(*parts)


def told(what: str, together: bool, spent: Any) -> None:
    """A line of what was measured, with the load of the machine."""
    print(json.dumps({"what": what, "together": together, "spent": spent, "load": os.getloadavg()[0]}), flush=True)


def commands(text: Path, own: Options, folder: str) -> dict[bool, Spent]:
    """What `pefx sweep` takes, and `pefx train` of all cells one after another, by the mean of a sample of them, whose
    revisions have the bits of the sweep's.
    """
    cells = runs(False, text, f"{folder}/alone", own)
    sample = cells[:: -(-len(cells) // own.sample)]
    together = command("sweep", sweep_config(text, f"{folder}/sweep", own), folder)
    told("command", True, together)
    alone = total(command("train", cell, folder) for cell in sample)
    told(f"{len(sample)} commands", False, alone)
    here, there = (Catalog.open(f"{folder}/{name}/catalog", read_only=True) for name in ("sweep", "alone"))
    for cell in sample:
        name = cell.users[0].name
        if here.get(name).content_hash != there.get(name).content_hash:
            sys.exit(f"{name}: not the same bits as by a command of its own")
    return {True: together, False: Spent(*(part * len(cells) / len(sample) for part in alone))}


def command(name: str, config: TrainConfig | SweepConfig, folder: str) -> Spent:
    """What `pefx NAME` of a config takes; the program ends with its complaint where it fails."""
    path = Path(folder) / "config.py"
    path.write_text(FILE.format(config=config), encoding="utf-8")
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "pefx.cli", name, str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(time.perf_counter() - begun, processor)


def main(options: Options) -> int:
    """Prints medians, ratios and the load of the machine."""
    use_cores()
    print(json.dumps(asdict(options), default=str), flush=True)
    rows: dict[str, list[tuple[Spent, Spent]]] = {}  # one after another, together
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), users_only=True)
        text = Path(folder) / "users" / PACKAGE
        if options.rounds:
            first, found = measured(text, options, folder)
            spent = {way: compiling(options, way, first[way], own) for way, own in found.items()}
            pairs = list(zip(found[False], found[True], strict=True))
            rows["steps alone, compiled"] = [(a.steps, b.steps) for a, b in pairs]
            rows["one process, compiled"] = [(a.whole, b.whole) for a, b in pairs]
            rows["one process, with compiling"] = [
                (total((spent[False], a.whole)), total((spent[True], b.whole))) for a, b in pairs
            ]
        if options.sample:
            by_command = commands(text, options, folder)
            rows[f"commands, of {options.sample} alone"] = [(by_command[False], by_command[True])]
    Console(width=120).print(table(options, rows))
    return 0


def table(options: Options, rows: Mapping[str, Sequence[tuple[Spent, Spent]]]) -> Table:
    """A row a figure: medians, and medians of the ratios of rounds, of seconds and of seconds of processors."""
    cells = len(options.ranks) * options.rates
    title = f"{cells} cells of {options.steps} steps of {options.tokens} tokens, {options.rounds} rounds"
    heads = ("one after another, s", "together, s", "times faster", "of processors, s", "times less")
    table = Table("", *heads, title=f"{title}; the same bits")
    for told, pairs in rows.items():
        alone, together = (Spent(*map(statistics.median, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
        faster, less = (statistics.median(a[clock] / b[clock] for a, b in pairs) for clock in (0, 1))
        processors = f"{alone.processor:.1f}, {together.processor:.1f}"
        shown = f"{alone.seconds:.1f}", f"{together.seconds:.1f}", f"{faster:.2f}", processors, f"{less:.2f}"
        table.add_row(told, *shown)
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
