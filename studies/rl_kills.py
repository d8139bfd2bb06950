"""A run that learns from rewards, killed at random instants and started again: it ends in the same hashes.

    python -m studies.rl_kills [--kills 20]

Four policies share two slots, so sessions are swapped in and out all the while; one learns twice from each drawing. The
run is killed (SIGKILL) and started again, time after time; where it ends before its next kill, another one begins.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    PolicyLossConfig,
    RolloutConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.store.catalog import Catalog
from studies.programs.commands import ROOT, environment, write_config

USERS = (
    UserConfig("ann", task=TaskConfig("sorting")),
    UserConfig("bob", task=TaskConfig("arithmetic"), policy_loss=PolicyLossConfig("gspo", kl=0.01)),
    UserConfig("cat", task=TaskConfig("edits"), rollout=RolloutConfig(2, 4, 12, updates=2, heldout=0)),
    UserConfig("dan", task=TaskConfig("json"), policy_loss=PolicyLossConfig("dapo", drop_even=True)),
)
PATIENCE = 600.0  # seconds that a start may take


@dataclass(frozen=True)
class Options:
    """How much."""

    kills: int = 20
    steps: int = 12
    seed: int = 0
    base: Path = ROOT / "assets" / "base"
    out: Path = ROOT / "runs" / "studies" / "rl_kills"


def config(options: Options, name: str) -> TrainConfig:
    """The run, in a folder of its own."""
    return TrainConfig(
        name="kills",
        output=str(options.out / name),
        base=str(options.base),
        users=USERS,
        catalog=str(options.out / f"{name}.catalog"),
        adapter=AdapterSpec(rank=4, targets=("q_proj", "experts.up_proj")),
        data=DataConfig(sequence_length=48, tokens_per_user=512, users_per_step=2),
        checkpoint=CheckpointConfig(every=3),
        rollout=RolloutConfig(prompts=2, group=4, max_tokens=12, heldout=4),
        sampler=SamplerConfig(sequences=16, step_tokens=64),
        steps=options.steps,
        slots=2,
        slice_steps=2,
        mesh=MeshConfig(data=1),
    )


def start(options: Options, name: str) -> subprocess.Popen:
    """The run in a process of its own; its programs are compiled once for all."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(options.out / "programs")}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    here = write_config(options.out / f"{name}.py", config(options, name))
    command = [sys.executable, "train.py", str(here)]
    return subprocess.Popen(command, cwd=ROOT, env={**environment(), **kept}, stdout=subprocess.DEVNULL)


def finish(options: Options, name: str) -> dict[str, str]:
    """The content hashes that the run ends in."""
    process = start(options, name)
    code = process.wait(PATIENCE)
    assert code == 0, f"{name} ended with {code}"
    catalog = Catalog.open(options.out / f"{name}.catalog", read_only=True)
    assert not catalog.space.keys("parked/", "parked0"), "sessions were left behind"
    return {policy: catalog.get(policy).content_hash for policy in catalog.policies()}


def main(options: Options) -> int:
    """Exit status 1 where a killed run ends otherwise than the undisturbed one."""
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    finish(options, "compiled")
    begun = time.monotonic()
    wanted = finish(options, "whole")
    whole = time.monotonic() - begun
    print(f"undisturbed: {whole:.0f} s, {len(wanted)} policies")
    draw, killed, runs, where = random.Random(options.seed), 0, 0, []
    while killed < options.kills:
        name = f"killed-{runs}"
        while killed < options.kills:
            process = start(options, name)
            time.sleep(draw.uniform(0.1 * whole, whole))
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            steps = sorted(int(path.name) for path in (options.out / name / "checkpoints").glob("[0-9]*"))
            where.append(steps[-1] if steps else 0)
            print(f"{name}: kill {killed}, newest checkpoint {where[-1]}")
        runs += 1
        found = finish(options, name)
        if found != wanted:
            others = [policy for policy in wanted if found.get(policy) != wanted[policy]]
            print(f"{name}: {', '.join(others)} ended in other hashes")
            return 1
    print(f"{killed} kills in {runs} runs, after checkpoints {where}: the same hashes every time")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
