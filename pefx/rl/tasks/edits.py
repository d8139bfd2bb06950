"""Edits of a string: `reverse hello` is answered by `olleh`."""

import string
from collections.abc import Callable
from random import Random

from pefx.rl.tasks.kind import ANY, Kind, Options, chosen, known, spoken
from pefx.rl.tasks.protocol import END, Problem

VOWELS = str.maketrans("", "", "aeiou")
# What is asked, and what a word of lower case becomes.
EDITS: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "upper": str.upper,
    "double": lambda word: word + word,
    "ends": lambda word: word[0] + word[-1],
    "consonants": lambda word: word.translate(VOWELS),
    "sorted": lambda word: "".join(sorted(word)),
}
REPLACE = "replace"


def draw(random: Random, level: int, options: Options) -> Problem:
    """A word of 4 or 5 letters at level 1, up to two more at each next."""
    edit = chosen(random, options["edit"], (*EDITS, REPLACE))
    size = random.randrange(3 + level, 4 + 2 * level)
    # Never without a consonant: an answer is never empty.
    word = "".join(random.choices(string.ascii_lowercase, k=size - 1)) + random.choice("bcdfghjklmnpqrstvwxyz")
    if edit == REPLACE:
        old, new = random.choice(word), random.choice(string.ascii_lowercase)
        return Problem(f"replace {old} {new} in {word}{END}", {"answer": word.replace(old, new)})
    return Problem(f"{edit} {word}{END}", {"answer": EDITS[edit](word)})


KIND = Kind(draw, spoken, known, options={"edit": (ANY, *EDITS, REPLACE)})
