"""What the users of a seed learn: right answers of a task as text, or a task's rewards."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from pefx.config import TaskConfig, TrainConfig, UserConfig
from studies.populations.cells import Subject, Subjects
from studies.populations.texts import corpus

APART = 1000  # seeds of problems that the report part has, beyond those that a seed learns from


def told(folder: Path, task: TaskConfig, train: int, heldout: int) -> Subjects:
    """Every seed has answers to problems of its own to learn from."""

    @cache
    def of(seed: int) -> Subject:
        parts = corpus(folder / f"{task.name}-{seed}", replace(task, seed=seed), train, heldout)
        taught = UserConfig("told", train=str(parts.train), heldout=str(parts.selection))
        return Subject(taught, replace(taught, heldout=str(parts.report)))

    return of


def rewarded(config: TrainConfig, heldout: int = 128) -> Subjects:
    """Every seed has problems of its own, of the task of the config's user; the `heldout` ones of the report part are
    held out as well, and drawn by another seed.
    """
    (user,) = config.users
    task, examined = user.task, replace(config.rollout, heldout=heldout)
    assert task is not None

    @cache
    def of(seed: int) -> Subject:
        own, apart = (UserConfig("rewarded", task=replace(task, seed=at)) for at in (seed, APART + seed))
        return Subject(own, replace(apart, rollout=examined))

    return of
