"""What the users of a seed learn: right answers of a task as text, or a task's rewards."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from pefx.config import TaskConfig, UserConfig
from studies.populations.cells import Subject, Subjects
from studies.populations.texts import corpus

APART = 1000  # seeds of problems that the report part has, beyond those that a seed learns from


def told(folder: Path, task: TaskConfig, train: int = 400, heldout: int = 48) -> Subjects:
    """Every seed has answers to problems of its own to learn from."""

    @cache
    def of(seed: int) -> Subject:
        parts = corpus(folder / f"{task.name}-{seed}", replace(task, seed=seed), train, heldout)
        taught = UserConfig("told", train=str(parts.train), heldout=str(parts.selection))
        return Subject(taught, replace(taught, heldout=str(parts.report)))

    return of


def rewarded(task: TaskConfig) -> Subjects:
    """Every seed has problems of its own; those of the report part are held out as well, and drawn by another seed."""

    @cache
    def of(seed: int) -> Subject:
        taught, examined = (UserConfig("rewarded", task=replace(task, seed=at)) for at in (seed, APART + seed))
        return Subject(taught, examined)

    return of
