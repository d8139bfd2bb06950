"""Numbers or letters in order: `sort 5 3 8 1` is answered by `1 3 5 8`, `sort down 5 3 8 1` by `8 5 3 1`."""

import string
from collections.abc import Sequence
from random import Random

from pefx.rl.tasks.kind import ANY, Kind, Options, chosen, closeness, known, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

ORDERS = ("up", "down")
ITEMS = ("numbers", "letters")


def draw(random: Random, level: int, options: Options) -> Problem:
    """Four items at level 1, one more at each next; numbers are below 10, or below 100 from level 3 on."""
    order = chosen(random, options["order"], ORDERS)
    if chosen(random, options["items"], ITEMS) == "numbers":
        pool = range(10 if level < 3 else 100)
    else:
        pool = string.ascii_lowercase
    items = random.choices(pool, k=level + 3)
    asked, answer = (" ".join(map(str, some)) for some in (items, sorted(items, reverse=order == "down")))
    word = "sort" if order == "up" else "sort down"
    return Problem(f"{word} {asked}{END}", {"answer": answer}, identity=f"{word} {answer}")


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """Closeness is counted in items."""
    return Turn(True, reward=closeness(line_of(texts).split(" "), problem.data["answer"].split(" ")))


KIND = Kind(draw, step, known, options={"items": (ANY, *ITEMS), "order": ("up", "down", ANY)})
