"""Policies that were trained to say their own names, asked a hundred thousand times: does the right one answer?

    python -m studies.named_policies [--requests 100000] [--policies 120]

Trains each policy, some of them two or three times, to answer "name" with its name and the number of its revision,
through `train.py`; then serves mixed requests through `serve.py`, with far fewer slots than revisions. Every answer
must say the name of the revision that was asked for, and with the tokens that this revision gives when it is alone.
Exit status 1 where one does not.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pefx.config import ServeConfig
from pefx.store.catalog import Catalog
from pefx.store.lifecycle import set_alias
from studies.named.people import BASE, RUNS, SPEC, Person, people, run_of, says
from studies.named.traffic import Asked, count_verdicts, everything, traffic
from studies.programs.commands import ROOT, answer, run, write_config


@dataclass(frozen=True)
class Options:
    """How much."""

    requests: int = 100_000
    policies: int = 120
    slots: int = 24
    sequences: int = 64
    seed: int = 0
    out: Path = ROOT / "runs" / "named_policies"
    """Where everything is written; what is trained there already is not trained again."""


def train_all(folder: Path, everyone: list[Person]) -> None:
    """A run of `train.py` for each number of a revision; then the aliases."""
    for number in range(1, RUNS + 1):
        if any(person.revisions >= number for person in everyone):
            run("train.py", write_config(folder / f"train-{number}.py", run_of(folder, everyone, number)))
    catalog = Catalog.open(folder / "catalog")
    for person in everyone:
        for alias, number in person.aliases.items():
            set_alias(catalog, person.name, alias, number)


def serve(folder: Path, name: str, asked: Iterable[Asked], slots: int, sequences: int) -> Path:
    """Answers requests through `serve.py`; returns the file of answers."""
    catalog = str(folder / "catalog")
    config = ServeConfig(
        "names", str(BASE), catalog, slots=slots, sequences=sequences, max_rank=SPEC.rank, targets=SPEC.targets
    )
    return answer(config, (one.row(str(index)) for index, one in enumerate(asked)), folder, name)


def answers_alone(folder: Path, everyone: list[Person]) -> dict[tuple[str | None, int | None], list[int]]:
    """Tokens of every revision and of the base, one after another: one slot, one sequence."""
    rows = [json.loads(line) for line in serve(folder, "alone", everything(everyone), 1, 1).read_text().splitlines()]
    for row in rows:
        if "error" in row:
            sys.exit(f"alone: {row['error']['message']}")
        if row["policy"] is not None and row["text"] != says(row["policy"], row["revision"]):
            sys.exit(f"{row['policy']}@{row['revision']} did not learn its name: alone it says {row['text']!r}")
    return {(row["policy"], row["revision"]): row["tokens"] for row in rows}


def study(options: Options) -> dict[str, Any]:
    """All of it; counts of verdicts, and seconds of each part."""
    folder, everyone = options.out.resolve(), people(options.policies)
    folder.mkdir(parents=True, exist_ok=True)
    begun = [time.perf_counter()]
    train_all(folder, everyone)
    begun.append(time.perf_counter())
    alone = answers_alone(folder, everyone)
    begun.append(time.perf_counter())
    asked = list(traffic(everyone, options.requests, options.seed))
    answers = serve(folder, "mixed", asked, options.slots, options.sequences)
    begun.append(time.perf_counter())
    with answers.open() as file:
        verdicts: Counter[str] = count_verdicts(asked, file, alone)
    wrong = sum(verdicts.values()) - verdicts["right"] - verdicts["refused"]
    parts = zip(("train_seconds", "alone_seconds", "serve_seconds"), begun, begun[1:])
    return {
        "policies": len(everyone),
        "revisions": sum(person.revisions for person in everyone),
        "slots": options.slots,
        "requests": len(asked),
        "wrong": wrong,
        "verdicts": dict(verdicts),
        **{name: round(after - before, 1) for name, before, after in parts},
    }


def main(options: Options) -> int:
    """Runs the study, prints what was found, and keeps it as results.json."""
    found = study(options)
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
