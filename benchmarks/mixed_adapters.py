"""Training and generation with many adapters in one batch, beside SkyRL tx and transformers with PEFT.

`pefx bench mixed_adapters`, or from the root `python -m benchmarks.mixed_adapters --only train-4 --repeats 7`. Every
entry of a comparison runs in a process of its own, on the same random Qwen3-MoE, float32; they take turns. The whole
takes about an hour on two cores, most of it SkyRL's 64 sequences; the peers' environments are made on the first run
(several GB). Results of a comparison are kept as soon as it ends.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from flax import nnx
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.mixed.comparisons import COMPARISONS, PEFX, Comparison
from benchmarks.mixed.report import Results, draw, markdown
from benchmarks.mixed.workers import python_of, workers
from pefx.config import ModelConfig
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.model import Base

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "assets" / "base" / "tokenizer.json"  # goes beside any base; nothing is read as text here
MODEL = ModelConfig(
    vocab_size=4096,
    hidden=256,
    layers=4,
    heads=8,
    kv_heads=4,
    head_size=32,
    experts=16,
    experts_per_token=4,
    expert_hidden=128,
    dense_layers=(),
    tied_embedding=False,
)


@dataclass(frozen=True)
class Options:
    """What to measure and where to put it."""

    only: tuple[str, ...] = ()
    """Names of comparisons; none: all."""
    repeats: Annotated[int, tyro.conf.arg(help="Repetitions of each entry.")] = 5
    out: Path = field(default_factory=lambda: ROOT / "runs" / "mixed_adapters")
    """Results, table and pictures; results of other comparisons that lie there stay."""
    builds: Path = field(default_factory=lambda: ROOT / "build" / "peers")
    """The peers' environments and the model."""


def write_model(directory: Path) -> Path:
    """The random Qwen3-MoE that all peers load."""
    save_base(Base(MODEL, nnx.Rngs(0)), directory, TOKENIZER)
    return directory


def measure(comparison: Comparison, pythons: dict[str, Path], options: Options, model: Path) -> list[list[float]]:
    """Tokens/s of each repetition of each entry."""
    found: list[list[float]] = [[] for _ in comparison.entries]
    with workers(comparison.entries, pythons, model, options.out) as running:
        for turn in range(options.repeats):
            # Forth and back, so that no entry always follows the same one.
            for place in range(len(running))[:: 1 if turn % 2 == 0 else -1]:
                found[place].append(running[place].run())
    return found


def about(repeats: int) -> dict[str, Any]:
    """What a reader must know to judge the numbers."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(": ", 1)[1] if model else platform.processor()
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "an unknown commit"
    return {
        "command": "python -m benchmarks.mixed_adapters",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {name}",
        "repeats": repeats,
    }


def main(options: Options) -> None:
    """Runs the comparisons, and writes results.json, table.md and pictures."""
    console = Console(stderr=True)
    known = [comparison.name for comparison in COMPARISONS]
    if unknown := set(options.only) - set(known):
        raise PefxError(f"--only {min(unknown)!r}: no such comparison; there are {', '.join(known)}")
    chosen = [c for c in COMPARISONS if not options.only or c.name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    peers = {entry.peer for comparison in chosen for entry in comparison.entries} | {PEFX}
    pythons = {peer: python_of(peer, options.builds) for peer in sorted(peers)}
    model = write_model(options.builds / "model")
    kept = options.out / "results.json"
    results: Results = json.loads(kept.read_text()) if kept.exists() else {}
    for comparison in chosen:
        console.print(f"{comparison.name}: {comparison.title}")
        results[comparison.name] = measure(comparison, pythons, options, model)
        kept.write_text(json.dumps(results, indent=1))
        table = markdown(results, about(options.repeats))
        (options.out / "table.md").write_text(table)
    draw(results, options.out)
    Console().print(Markdown(table))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except PefxError as error:
        sys.exit(f"error: {error}")
