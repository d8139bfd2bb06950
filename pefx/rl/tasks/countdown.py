"""Reach a number with given ones: `make 24 from 3 5 9` is answered by `3*5+9`. Each number serves once at most."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from pefx.rl.tasks.kind import Kind, Options, known, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

# By how tightly they bind.
SIGNS = {"+": (1, operator.add), "-": (1, operator.sub), "*": (2, operator.mul)}
NODES: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
LONGEST = 100  # characters of an answer
PLAIN = re.compile(r"[0-9+*()\- ]+")


def draw(random: Random, level: int, options: Options) -> Problem:
    """Two numbers at level 1, one more at each next, and a target from 1 to 999 that takes all of them."""
    while True:
        numbers = [random.randrange(1, 10 * level) for _ in range(level + 1)]
        text, target = combined(random, numbers)
        if 0 < target < 1000 and target not in numbers:
            break
    given = " ".join(map(str, numbers))
    data = {"numbers": numbers, "target": target, "answer": text}
    identity = f"make {target} from {' '.join(map(str, sorted(numbers)))}"
    return Problem(f"make {target} from {given}{END}", data, identity)


def combined(random: Random, numbers: Sequence[int]) -> tuple[str, int]:
    """An expression that uses every number once, with the parentheses it needs, and its value."""
    parts = [(str(number), number, 3) for number in numbers]
    while len(parts) > 1:
        (left, a, tight_left), (right, b, tight_right) = (parts.pop(random.randrange(len(parts))) for _ in range(2))
        sign = random.choice("+-*")
        tight, apply = SIGNS[sign]
        left = left if tight_left >= tight else f"({left})"
        right = right if tight_right > tight or (tight_right == tight and sign != "-") else f"({right})"
        parts.append((left + sign + right, apply(a, b), tight))
    text, value, _ = parts[0]
    return text, value


def evaluate(text: str) -> tuple[int, Counter[int]] | None:
    """The value of an expression of whole numbers, + - * and parentheses, and the numbers in it; None for all else."""
    if len(text) > LONGEST or not PLAIN.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> tuple[int, Counter[int]]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value, Counter([node.value])
    if isinstance(node, ast.BinOp) and type(node.op) in NODES:
        (a, left), (b, right) = _value(node.left), _value(node.right)
        return SIGNS[NODES[type(node.op)]][1](a, b), left + right
    raise ValueError(f"{type(node).__name__} is no part of an answer")


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """Closeness is that of the value to the target, 0 where the answer breaks a rule."""
    found = evaluate(line_of(texts))
    if found is None:
        return Turn(True, parts={"parsed": 0.0, "allowed": 0.0})
    value, used = found
    allowed = used <= Counter(problem.data["numbers"])
    close = 1 / (1 + abs(value - problem.data["target"])) if allowed else 0.0
    return Turn(True, reward=close, parts={"parsed": 1.0, "allowed": float(allowed)})


KIND = Kind(draw, step, known)
