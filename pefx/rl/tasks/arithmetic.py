"""Sums, differences and products: `calc 12+7` is answered by `19`."""

import operator
from random import Random

from pefx.rl.tasks.kind import ANY, Kind, Options, chosen, known, spoken
from pefx.rl.tasks.protocol import END, Problem

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def draw(random: Random, level: int, options: Options) -> Problem:
    """Two numbers of up to `digits` digits (0: as many as the level)."""
    sign = chosen(random, options["operation"], tuple(OPERATIONS))
    below = 10 ** (int(options["digits"]) or level)
    a, b = random.randrange(below), random.randrange(below)
    first, second = (a, b) if sign == "-" else sorted((a, b))
    answer = OPERATIONS[sign](a, b)
    return Problem(f"calc {a}{sign}{b}{END}", {"answer": str(answer)}, identity=f"calc {first}{sign}{second}")


KIND = Kind(draw, spoken, known, options={"operation": (ANY, *OPERATIONS), "digits": range(10)})
