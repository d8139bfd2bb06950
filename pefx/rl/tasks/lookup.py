"""Answers that only a tool knows: `find abc` is followed by the call `get abc`, what it gives, and the answer.

A completion that begins with `get ` is a call, any other one the answer. Several names are asked for their sum.
"""

import string
from collections.abc import Sequence
from random import Random

from pefx.rl.tasks.kind import Kind, Options, closeness, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

CALL = "get "
NOTHING = "none"


def draw(random: Random, level: int, options: Options) -> Problem:
    """One name of three letters at level 1, one more at each next; their values are from 0 to 99."""
    names: dict[str, None] = {}
    while len(names) < level:
        names["".join(random.choices(string.ascii_lowercase, k=3))] = None
    return Problem(f"find {'+'.join(names)}{END}", {"values": {name: random.randrange(100) for name in names}})


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """What a call gives, or how close the answer is."""
    values = problem.data["values"]
    line = line_of(texts)
    if line.startswith(CALL):
        return Turn(False, observation=str(values.get(line.removeprefix(CALL), NOTHING)) + END)
    asked = {line_of([text]).removeprefix(CALL) for text in texts[:-1]}
    right = str(sum(values.values()))
    return Turn(True, reward=closeness(line, right), parts={"found": len(asked & values.keys()) / len(values)})


def answer(problem: Problem, texts: Sequence[str]) -> str:
    """A call for each name, in order, then the sum."""
    values = problem.data["values"]
    lines = [CALL + name for name in values] + [str(sum(values.values()))]
    return lines[min(len(texts), len(values))] + END


KIND = Kind(draw, step, answer, turns=lambda level: level + 1)
