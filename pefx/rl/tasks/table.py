"""From a config to its task, and what the values of a task's config must satisfy."""

import math
from collections.abc import Iterator

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.jsonl import JsonlTask
from pefx.rl.tasks.kind import LEVELS, Kind
from pefx.rl.tasks.protocol import Task

JSONL = "jsonl"
Broken = Iterator[tuple[str, str]]  # (field, what is wrong and what would be right)


def make_task(config: TaskConfig) -> Task:
    """The task that a config describes; raises PefxError naming the field, or the file and line, that is wrong."""
    for name, problem in task_rules(config):
        raise PefxError(f"task.{name}: {problem}")
    return JsonlTask(config) if config.name == JSONL else Generated(config, TASKS[config.name])


def task_rules(config: TaskConfig) -> Broken:
    """Yields every rule that `config` breaks, field by field; the types of its fields are taken as checked."""
    if config.name != JSONL and config.name not in TASKS:
        yield "name", f"no task is called {config.name!r}; there are {', '.join(TASKS)} and {JSONL}"
        return
    if config.seed < 0:
        yield "seed", f"must not be negative, got {config.seed}"
    for name in ("timeout", "memory_mb"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            yield name, f"must be above 0, got {value}"
    yield from file_rules(config) if config.name == JSONL else kind_rules(config, TASKS[config.name])


def file_rules(config: TaskConfig) -> Broken:
    default = TaskConfig(JSONL)
    for name, what in (("path", "a JSONL file"), ("reward", "a function, 'module:function'")):
        if not getattr(config, name):
            yield name, f"is missing; a jsonl task needs {what}"
    if config.heldout_path == "":
        yield "heldout_path", "is empty; name a file, or None to hold an eighth out by hash"
    for name in ("level", "options", "partial", "turns"):
        if getattr(config, name) != getattr(default, name):
            yield name, f"is of built-in tasks; leave it at {getattr(default, name)!r} for jsonl"


def kind_rules(config: TaskConfig, kind: Kind) -> Broken:
    for name in ("path", "heldout_path", "reward"):
        if getattr(config, name) is not None:
            yield name, f"is of jsonl tasks; {config.name} draws and rewards its own problems"
    if not 1 <= config.level <= LEVELS:
        yield "level", f"must be 1 to {LEVELS}, got {config.level}"
    if config.partial is not None and not 0 <= config.partial <= 1:
        yield "partial", f"must be from 0 to 1, got {config.partial}"
    if config.turns < kind.turns(config.level):
        yield "turns", f"must be at least {kind.turns(config.level)} at level {config.level}, got {config.turns}"
    given = [name for name, _ in config.options]
    for name, value in config.options:
        values = kind.options.get(name)
        if values is None:
            options = ", ".join(kind.options) or "none"
            yield "options", f"{config.name} has no option {name!r}; its options: {options}"
        elif given.count(name) > 1:
            yield "options", f"{name!r} is given twice"
        elif isinstance(values, range) and not (type(value) is int and value in values):
            yield "options", f"{name!r} must be {values[0]} to {values[-1]}, got {value!r}"
        elif isinstance(values, tuple) and value not in values:
            yield "options", f"{name!r} must be one of {', '.join(values)}, got {value!r}"
