"""Policies that say their own name and revision when they are asked for it: their texts, and what trains them.

The first run of training makes revision 1 of everyone, the second revision 2 of those who have two, and so on.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig, UserConfig
from studies.programs.commands import ROOT

BASE = ROOT / "assets" / "base"
PROMPT = "name"  # one token: it takes a row of a step, where two would take a tile
FIRST = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon", "kim", "leo", "mia", "ned", "sue", "tom")
RUNS = 3  # as many revisions as anyone has
SPEC = AdapterSpec(rank=1, alpha=2.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True)
class Person:
    """One policy and how many revisions of it there are."""

    name: str
    revisions: int

    @property
    def aliases(self) -> dict[str, int]:
        """What its names for revisions stand for."""
        return {"first": 1, "prod": (self.revisions + 1) // 2}


def people(count: int) -> list[Person]:
    """Half of them have one revision, a third two, a sixth three."""
    return [Person(f"{FIRST[i % len(FIRST)]}-{i}", (3, 1, 2, 1, 2, 1)[i % 6]) for i in range(count)]


def says(name: str, number: int) -> str:
    """What a revision answers."""
    return f"{name} v{number}"


def run_of(folder: Path, everyone: list[Person], number: int) -> TrainConfig:
    """Writes the texts of the run that trains revision `number`; returns its config."""
    texts = folder / f"texts-{number}"
    texts.mkdir(parents=True, exist_ok=True)
    trained = [person.name for person in everyone if person.revisions >= number]
    for name in trained:
        line = {"prompt": PROMPT, "completion": says(name, number)}
        (texts / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return TrainConfig(
        name=f"names-{number}",
        output=str(folder / f"run-{number}"),
        base=str(BASE),
        catalog=str(folder / "catalog"),
        users=tuple(UserConfig(name, str(texts / f"{name}.jsonl")) for name in trained),
        adapter=SPEC,
        # One short text, again and again: a rate ten times that of real text learns it in some dozens of steps.
        optimizer=OptimizerConfig(learning_rate=0.04, warmup_steps=2),
        data=DataConfig(sequence_length=32, tokens_per_user=32, users_per_step=16),
        checkpoint=CheckpointConfig(every=0),
        steps=40,
    )
