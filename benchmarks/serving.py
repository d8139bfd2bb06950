"""Requests of mixed lengths over many adapters: continuous batching beside fixed batches, SkyRL tx, and PEFT.

`pefx bench serving`, or from the root `python -m benchmarks.serving --repeats 3`. 256 requests of 16 to 256 tokens ask
for 8 to 128 new ones of 64 adapters, greedy, end tokens ignored. Every entry runs in a process of its own, on the same
random Qwen3-MoE, float32; they take turns. A repetition of pefx and of PEFT takes half a minute; of SkyRL tx, which
answers the first requests only, some minutes. Fixed batches may be made of answers of about one length ("sorted"),
which only who ignores end tokens can do.
"""

import json
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.mixed.comparisons import NAMES, PEFX, SKYRL, TORCH
from benchmarks.mixed.workers import python_of, workers
from benchmarks.mixed_adapters import ROOT, about, write_model
from benchmarks.peers.traffic import Traffic
from pefx.errors import PefxError

CONTINUOUS = "continuous"


@dataclass(frozen=True)
class Options:
    """What to measure and where to put it."""

    only: tuple[str, ...] = ()
    """Keys of entries, as in `continuous static skyrl`; none: all."""
    repeats: Annotated[int, tyro.conf.arg(help="Repetitions of each entry.")] = 5
    requests: int = 256
    adapters: int = 64
    skyrl_requests: int = 64
    """How many of the requests SkyRL tx answers."""
    skyrl_batch: int = 8
    """How many of them at once: their prompts are copied for each expert of each slot."""
    sequences: int = 64
    """How many run at once in pefx; also the size of its fixed batches."""
    torch_batch: int = 32
    """Rows of PEFT's mixed batches."""
    out: Path = field(default_factory=lambda: ROOT / "runs" / "serving")
    """Results and table."""
    builds: Path = field(default_factory=lambda: ROOT / "build" / "peers")
    """The peers' environments and the model."""


@dataclass(frozen=True)
class Entry:
    """One line of the table: whose program, and its traffic."""

    key: str
    peer: str
    how: str
    case: Traffic

    @property
    def name(self) -> str:
        return f"{NAMES[self.peer]}, {self.how}"


def entries(options: Options) -> list[Entry]:
    """What is compared, pefx's continuous batching first."""
    own = Traffic(options.requests, options.adapters, options.sequences, CONTINUOUS)
    fixed = f"fixed batches of {options.sequences}"
    mixed = replace(own, batch=options.torch_batch, way="mixed")
    first = min(options.skyrl_requests, options.requests)
    skyrl = replace(own, batch=options.skyrl_batch, way="sorted", first=first)
    return [
        Entry(CONTINUOUS, PEFX, "continuous batching", own),
        Entry("static", PEFX, fixed, replace(own, way="static")),
        Entry("padded", PEFX, f"{fixed}, kept whole", replace(own, way="padded")),
        Entry("sorted", PEFX, f"{fixed}, sorted", replace(own, way="sorted")),
        Entry("skyrl", SKYRL, f"batches of {options.skyrl_batch}, sorted, the first {first}", skyrl),
        Entry("peft-grouped", TORCH, "adapter by adapter", replace(own, batch=options.requests, way="grouped")),
        Entry("peft-mixed", TORCH, f"mixed batches of {options.torch_batch}, sorted", mixed),
    ]


RATIOS = {  # over the best of these
    "pefx's fixed batches, whose rows are kept until the last is over": ("padded",),
    "pefx's fixed batches, which shrink": ("static",),
    "pefx's fixed batches, lengths known": ("sorted",),
    "SkyRL tx": ("skyrl",),
    "transformers + PEFT, the better way": ("peft-grouped", "peft-mixed"),
}

Rates = dict[str, list[float]]  # generated tokens/s of each repetition, by the entry's key


def ratio(rates: Rates, over: tuple[str, ...]) -> float | None:
    """The median over rounds of continuous batching's rate over the best of some others'; None where one is missing."""
    present = [key for key in over if key in rates]
    if CONTINUOUS not in rates or not present:
        return None
    best = max(present, key=lambda key: statistics.median(rates[key]))
    return statistics.median(a / b for a, b in zip(rates[CONTINUOUS], rates[best], strict=True))


def markdown(chosen: list[Entry], rates: Rates, facts: dict[str, Any]) -> str:
    """Rates and ratios as two tables."""
    lines = [
        f"Made by `{facts['command']}` at {facts['commit']}, {facts['date']}, on {facts['machine']}. Medians of",
        f"{facts['repeats']} alternating repetitions (lowest to highest); ratios: medians of each round's ratio.",
        "",
        "| who | generated tokens/s | lowest to highest | all tokens/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for entry in chosen:
        found, case = rates[entry.key], entry.case
        median, whole = statistics.median(found), 1 + case.prompt_tokens / case.tokens
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        lines.append(f"| {entry.name} | {median:,.0f} | {spread} | {median * whole:,.0f} |")
    lines += ["", "| continuous batching over | generated tokens/s |", "| --- | ---: |"]
    for name, over in RATIOS.items():
        if (value := ratio(rates, over)) is not None:
            lines.append(f"| {name} | {value:.2f} |")
    return "\n".join(lines) + "\n"


def measure(chosen: list[Entry], options: Options) -> Rates:
    """Generated tokens/s of each repetition of each entry."""
    pythons = {peer: python_of(peer, options.builds) for peer in sorted({entry.peer for entry in chosen} | {PEFX})}
    model = write_model(options.builds / "model")
    rates: Rates = {entry.key: [] for entry in chosen}
    with workers(chosen, pythons, model, options.out) as running:
        for turn in range(options.repeats):
            for place in range(len(running))[:: 1 if turn % 2 == 0 else -1]:
                rates[chosen[place].key].append(running[place].run())
    return rates


def main(options: Options) -> None:
    """Runs the comparison, and writes results.json and table.md."""
    chosen = entries(options)
    if unknown := set(options.only) - {entry.key for entry in chosen}:
        known = ", ".join(entry.key for entry in chosen)
        raise PefxError(f"--only {min(unknown)!r}: no such entry; there are {known}")
    chosen = [entry for entry in chosen if not options.only or entry.key in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    rates = measure(chosen, options)
    (options.out / "results.json").write_text(json.dumps(rates, indent=1))
    table = markdown(chosen, rates, about(options.repeats) | {"command": "python -m benchmarks.serving"})
    (options.out / "table.md").write_text(table)
    Console().print(Markdown(table))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except PefxError as error:
        sys.exit(f"error: {error}")
