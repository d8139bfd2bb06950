"""Policies that learn from rewards together, against the same policies one after another.

`pefx bench policies`, or from the root `python -m benchmarks.policies --rounds 3`. On the shipped base each policy
draws a few answers, is rewarded and updated, step after step: all policies in shared batches, or each by itself, as a
system does that holds one adapter at a time. Work is the same (so are the bits). Each way has a process of its own,
whose peak memory is its, and does everything twice: what is timed is compiled already. Ways take turns.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pefx.config import (
    AdapterSpec,
    DataConfig,
    MeshConfig,
    RolloutConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.mesh import on_mesh, use_cores
from pefx.rl.curriculum import Rewarded
from pefx.rl.rewards import Rewards
from pefx.training.adapters import AdapterTraining
from pefx.training.curves import INK, save, style

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("sorting", "arithmetic", "edits", "json")


@dataclass(frozen=True)
class Options:
    """How much."""

    counts: tuple[int, ...] = (3, 16)
    """Policies."""
    steps: int = 6
    rounds: int = 3
    prompts: int = 2
    group: int = 4
    tokens: int = 16
    data: int = 1
    """Shards; a core each, on CPU. A single one uses all cores where there is enough to do."""
    base: Path = ROOT / "assets" / "base"
    picture: Path = ROOT / "docs" / "studies" / "policies-together.png"


@dataclass(frozen=True)
class Way:
    """What one process does: `policies` of them, together or one after another."""

    policies: int
    together: bool
    options: Options


def config(way: Way, output: str, users: tuple[UserConfig, ...]) -> TrainConfig:
    """A run of these policies."""
    own = way.options
    return TrainConfig(
        name="policies",
        output=output,
        base=str(own.base),
        users=users,
        adapter=AdapterSpec(rank=8),
        data=DataConfig(sequence_length=32, tokens_per_user=32 * own.prompts * own.group, users_per_step=len(users)),
        rollout=RolloutConfig(own.prompts, own.group, own.tokens, heldout=0),
        sampler=SamplerConfig(sequences=own.prompts * own.group * len(users)),
        mesh=MeshConfig(data=min(own.data, len(users))),
        page_size=16,
        steps=own.steps,
    )


def timed(way: Way) -> dict[str, float]:
    """Seconds of all policies' timed steps, tokens that were drawn in them, and the process's peak memory in MiB."""
    use_cores()
    users = tuple(UserConfig(f"user-{i}", task=TaskConfig(TASKS[i % len(TASKS)]), seed=i) for i in range(way.policies))
    groups = [users] if way.together else [(user,) for user in users]
    found = []
    with tempfile.TemporaryDirectory() as folder, Rewards() as judge:
        for turn in ("compiled", "timed"):
            took = [run(config(way, f"{folder}/{turn}/{i}", group), judge) for i, group in enumerate(groups)]
            found.append((sum(seconds for seconds, _ in took), sum(tokens for _, tokens in took)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, tokens = found[-1]
    return {"seconds": seconds, "tokens": tokens, "peak_mb": peak}


def run(config: TrainConfig, judge: Rewards) -> tuple[float, int]:
    """Seconds of the steps of a run, and what they learned from, in tokens."""
    with on_mesh(config.mesh):
        trainee = AdapterTraining(config, config.mesh, partial(Rewarded, rewards=judge))
        begun, tokens = time.perf_counter(), 0.0
        for step in range(trainee.steps):
            tokens += trainee.report(step, trainee.advance(step)).tokens
        return time.perf_counter() - begun, int(tokens)


def measured(way: Way) -> dict[str, float]:
    """`timed`, in a process of its own."""
    words = ["--policies", str(way.policies), "--together", str(way.together)]
    for name in ("steps", "prompts", "group", "tokens", "data", "base"):
        words += [f"--options.{name}", str(getattr(way.options, name))]
    command = [sys.executable, "-m", "benchmarks.policies", "way", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> int:
    """Prints medians and ratios, and draws them."""
    table = Table("policies", "way", "tokens/s", "peak MiB", "times faster", title=f"{options.rounds} rounds, medians")
    speedups: dict[int, list[float]] = {}
    for count in options.counts:
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for turn in range(options.rounds):
            for together in (True, False) if turn % 2 == 0 else (False, True):
                found[together].append(measured(Way(count, together, options)))
        pairs = list(zip(found[True], found[False], strict=True))
        if any(a["tokens"] != b["tokens"] for a, b in pairs):
            sys.exit(f"{count} policies: the work was not the same: {pairs}")
        speedups[count] = [b["seconds"] / a["seconds"] for a, b in pairs]
        for together, own in found.items():
            rate = statistics.median(one["tokens"] / one["seconds"] for one in own)
            peak = statistics.median(one["peak_mb"] for one in own)
            ratio = f"{statistics.median(speedups[count]):.2f}" if together else ""
            table.add_row(
                str(count), "together" if together else "one after another", f"{rate:,.0f}", f"{peak:,.0f}", ratio
            )
    Console().print(table)
    draw(speedups, options.picture)
    return 0


def draw(speedups: dict[int, list[float]], path: Path) -> None:
    """How many times faster, by the number of policies."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    style(axes)
    counts = list(speedups)
    axes.bar([str(count) for count in counts], [float(np.median(speedups[count])) for count in counts], color="#3b82a0")
    for place, count in enumerate(counts):
        axes.plot([place] * len(speedups[count]), speedups[count], "o", color="#d1495b", markersize=4)
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_xlabel("policies", fontsize=9, color=INK)
    axes.set_title("Together, times as fast as one after another", fontsize=11, color=INK, loc="left")
    save(figure, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        print(json.dumps(timed(tyro.cli(Way, args=sys.argv[2:]))))
    else:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
