"""Expressions from examples: `code 1:3 2:5 4:9` asks for a Python expression in `x`, such as `2*x+1`.

Answers run in a sandbox, on the inputs shown and on others. What is right for them never goes in there.
"""

import ast
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pefx.rl.sandbox import run_python
from pefx.rl.tasks.kind import Kind, Options, known, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

SHOWN = 3  # inputs in the prompt
HIDDEN = 5
SECONDS = 2.0
MEGABYTES = 128
HARNESS = """
import json, sys

def answer(x):
    return (
{expression}
    )

results = []
for x in json.loads(sys.stdin.read()):
    try:
        results.append(answer(x))
    except Exception:
        results.append(None)
print()
print(json.dumps(results, default=repr))
"""


@dataclass(frozen=True)
class Form:
    """What expressions look like, with the numbers `a` and `b` to be filled in, and what they are worth."""

    text: str
    apply: Callable[[Any, int, int], Any]


# By the level from which they are drawn. Those of the second table read text.
NUMERIC: tuple[tuple[int, Form], ...] = (
    (1, Form("x+{a}", lambda x, a, b: x + a)),
    (1, Form("x-{a}", lambda x, a, b: x - a)),
    (1, Form("{a}*x", lambda x, a, b: a * x)),
    (1, Form("{a}-x", lambda x, a, b: a - x)),
    (2, Form("{a}*x+{b}", lambda x, a, b: a * x + b)),
    (2, Form("{a}*x-{b}", lambda x, a, b: a * x - b)),
    (3, Form("x*x+{a}", lambda x, a, b: x * x + a)),
    (4, Form("max(x,{a})", lambda x, a, b: max(x, a))),
    (4, Form("abs(x-{a})", lambda x, a, b: abs(x - a))),
)
TEXTUAL: tuple[tuple[int, Form], ...] = (
    (3, Form("x[::-1]", lambda x, a, b: x[::-1])),
    (3, Form("x*{a}", lambda x, a, b: x * a)),
    (3, Form("x.upper()", lambda x, a, b: x.upper())),
    (4, Form("x[0]*{a}", lambda x, a, b: x[0] * a)),
    (5, Form("x[1:]+x[0]", lambda x, a, b: x[1:] + x[0])),
)


def draw(random: Random, level: int, options: Options) -> Problem:
    """An expression of a form of the level or below, three inputs that are shown and five that are not."""
    textual = level >= 3 and random.random() < 0.5
    form = random.choice([form for least, form in (TEXTUAL if textual else NUMERIC) if least <= level])
    a, b = random.randrange(2, 20), random.randrange(1, 20)
    if textual:
        a = random.randrange(2, 4)
        pool = ["".join(random.choices("abcdefgh", k=3)) for _ in range(4 * (SHOWN + HIDDEN))]
        inputs: list[Any] = list(dict.fromkeys(pool))[: SHOWN + HIDDEN]
    else:
        inputs = random.sample(range(20), SHOWN + HIDDEN)
    outputs = [form.apply(x, a, b) for x in inputs]
    expression = form.text.format(a=a, b=b)
    shown = " ".join(f"{x}:{y}" for x, y in zip(inputs[:SHOWN], outputs, strict=False))
    data = {"inputs": inputs, "outputs": outputs, "answer": expression}
    # What is to be found is the expression: held-out ones are new, not only their examples.
    return Problem(f"code {shown}{END}", data, identity=f"code {expression}")


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """Closeness is the fraction of inputs with the right result."""
    expression = line_of(texts)
    if not is_expression(expression):
        return Turn(True, parts={"parsed": 0.0, "ran": 0.0})
    data: Mapping[str, Any] = problem.data
    ran = run_python(HARNESS.format(expression=expression), json.dumps(data["inputs"]), SECONDS, MEGABYTES)
    results = _results(ran.output) if ran.kind is None else []
    same = [type(a) is type(b) and a == b for a, b in zip(results, data["outputs"], strict=False)]
    close = sum(same) / len(data["outputs"]) if len(results) == len(data["outputs"]) else 0.0
    return Turn(True, reward=close, parts={"parsed": 1.0, "ran": float(ran.kind is None)})


def is_expression(text: str) -> bool:
    """Whether a text is one Python expression, so that nothing is started for those that are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _results(output: str) -> list[Any]:
    try:
        found = json.loads(output.rstrip("\n").rsplit("\n", 1)[-1])
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


KIND = Kind(draw, step, known, trusted=False)
