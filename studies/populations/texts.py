"""What users of a study are taught: right answers to a task's problems, a train, a selection and a report part."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from pefx.config import TaskConfig
from pefx.rl.tasks.protocol import Problem, Split, Task
from pefx.rl.tasks.table import make_task


class Parts(NamedTuple):
    """Files of JSONL. No problem is in two of them."""

    train: Path
    selection: Path
    report: Path


def corpus(folder: Path, config: TaskConfig, train: int, heldout: int) -> Parts:
    """Writes `train` problems, and twice `heldout` others, with their answers; a function of `config` alone."""
    task = make_task(config)
    kept, apart = _distinct(task, "train"), _distinct(task, "heldout")
    sizes = {"train": (train, kept), "selection": (heldout, apart), "report": (heldout, apart)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, problems) in sizes.items():
        lines = [_line(task, next(problems)) for _ in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Parts(*(folder / f"{name}.jsonl" for name in sizes))


def _distinct(task: Task, split: Split) -> Iterator[Problem]:
    """The problems of a split in order, each once."""
    seen: set[str] = set()
    for index in count():
        problem = task.problem(index, split)
        if problem.name not in seen:
            seen.add(problem.name)
            yield problem


def _line(task: Task, problem: Problem) -> str:
    return json.dumps({"prompt": problem.prompt, "completion": task.answer(problem)}) + "\n"
