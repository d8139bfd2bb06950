"""A built-in task as data: how a problem is drawn, judged and answered, and the options that it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from pefx.rl.tasks.protocol import END, Problem, Turn

Value = int | str
Options = Mapping[str, Value]
LEVELS = 5
ANY = "any"  # an option's value: drawn for each problem


@dataclass(frozen=True)
class Kind:
    """One built-in task.

    `draw` makes a problem of a level (1 to `LEVELS`) with all options given. `step` is that of a task, but its reward
    is how close the answer is: 1 for a right one, less for any other. `answer` is that of a task. `options` are the
    values that each option may have, the default first. `partial` is the default of the config's field, `turns` the
    completions that a right answer takes at a level.
    """

    draw: Callable[[Random, int, Options], Problem]
    step: Callable[[Problem, Sequence[str]], Turn]
    answer: Callable[[Problem, Sequence[str]], str]
    options: Mapping[str, tuple[str, ...] | range] = field(default_factory=dict)
    partial: float = 0.0
    trusted: bool = True
    turns: Callable[[int], int] = lambda level: 1


def chosen(random: Random, value: Value, values: Sequence[str]) -> str:
    """`value` itself, or one of `values` where it is `ANY`."""
    return random.choice(values) if value == ANY else str(value)


def line_of(texts: Sequence[str]) -> str:
    """The last completion up to its end mark."""
    return texts[-1].split(END, 1)[0]


def closeness(said: Sequence[str], right: Sequence[str]) -> float:
    """The fraction of places at which two strings, or lists, agree: 1 only where they are equal."""
    longest = max(len(said), len(right))
    return sum(a == b for a, b in zip(said, right, strict=False)) / longest if longest else 1.0


def spoken(problem: Problem, texts: Sequence[str]) -> Turn:
    """The turn of a problem whose answer is the one text `data["answer"]`."""
    return Turn(True, reward=closeness(line_of(texts), problem.data["answer"]))


def known(problem: Problem, texts: Sequence[str]) -> str:
    """The answer of a problem that holds it as `data["answer"]`."""
    return problem.data["answer"] + END
