"""Runs of rewarded policies for studies: one population a run, a policy for each case and seed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pefx.config import CheckpointConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.training.journal import METRICS, read_rows
from pefx.training.loop import finished
from studies.programs.commands import ROOT, run, write_config

BASE = ROOT / "assets" / "base_tasks"


def seeded(users: Sequence[UserConfig], seeds: int) -> tuple[UserConfig, ...]:
    """Each of `users` once for every seed, as `name/seed`."""
    return tuple(replace(user, name=f"{user.name}/{seed}", seed=seed) for user in users for seed in range(seeds))


def trained(config: TrainConfig, folder: Path, every: int = 20, base: Path = BASE) -> list[dict[str, Any]]:
    """The rows that a run of `config` in `folder` measured, saved every `every` steps. Started again it goes on, or is
    done already.
    """
    if not base.is_dir():
        raise PefxError(f"{base}: no such directory; docs/rl.md says how this base is made")
    folder.mkdir(parents=True, exist_ok=True)
    here = replace(
        config,
        output=str(folder / "run"),
        base=str(base),
        catalog=str(folder / "catalog"),
        checkpoint=CheckpointConfig(every=every, keep=1),
    )
    if finished(here) is None:
        run("train.py", write_config(folder / "config.py", here))
    return read_rows(folder / "run" / METRICS)


def heldout(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, reward or nats per token on what is held out) of a policy."""
    found = [row for row in rows if row["kind"] == "heldout" and row["name"] == name]
    return [(row["step"], row["reward" if "reward" in row else "loss"]) for row in found]


def gain(rows: Sequence[dict[str, Any]], name: str) -> float:
    """How much a policy's held-out reward rose from the first evaluation to the last."""
    found = heldout(rows, name)
    return found[-1][1] - found[0][1]


def of(rows: Sequence[dict[str, Any]], name: str, number: str) -> list[float]:
    """A number of all updates of a policy."""
    return [row[number] for row in rows if row["kind"] == "train" and row["name"] == name]
