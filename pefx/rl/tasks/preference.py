"""A person's taste: `say cat` is answered by any words about a cat, and rewarded for the rules that they keep.

The rules are the person's own, drawn from `user`, and never shown: a word that ends everything, upper or lower case, a
number of words, a letter that must not occur.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from pefx.rl.tasks.kind import Kind, Options, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

TOPICS = [
    "ant", "ape", "bat", "bear", "bee", "bird", "bull", "cat", "cod", "cow", "crab", "crow", "deer", "dog", "duck",
    "eel", "elk", "emu", "fish", "flea", "fox", "frog", "gnu", "goat", "gull", "hare", "hawk", "hen", "ibex", "jay",
    "kiwi", "lamb", "lion", "lynx", "mink", "mole", "moth", "mule", "newt", "owl", "pig", "puma", "ram", "rat", "ray",
    "seal", "slug", "swan", "toad", "wasp", "wolf", "worm", "wren", "yak",
]  # fmt: skip
CLOSINGS = ["bye", "done", "hey", "ok", "over", "peace", "wow", "yes"]
FILLERS = ["a", "big", "fun", "hot", "my", "old", "so", "sly"]
# What `without` may forbid. Each leaves topics and fillers enough.
LETTERS = "aeilnorst"
CASES = {"upper": str.upper, "lower": str.lower}


def rules_of(user: int, level: int) -> dict[str, Any]:
    """The hidden rules of a user: `level` + 1 of the four, at most all."""
    random = Random(f"preference {user}")
    closing = random.choice(CLOSINGS)
    every: dict[str, Any] = {
        "closing": closing,
        "case": random.choice(tuple(CASES)),
        "words": random.choice((3, 4)),
        "without": random.choice([letter for letter in LETTERS if letter not in closing]),
    }
    kept = random.sample(list(every), k=len(every))[: level + 1]
    return {name: every[name] for name in every if name in kept}


def draw(random: Random, level: int, options: Options) -> Problem:
    """A topic that the user's rules allow; it is the same problem for every user."""
    rules = rules_of(int(options["user"]), level)
    topic = random.choice([topic for topic in TOPICS if rules.get("without", "-") not in topic])
    return Problem(f"say {topic}{END}", {"topic": topic, "rules": rules})


def ends(words: Sequence[str], line: str, wanted: str) -> bool:
    return words[-1] == wanted


def cased(words: Sequence[str], line: str, wanted: str) -> bool:
    return line == CASES[wanted](line) and any(letter in string.ascii_letters for letter in line)


def counted(words: Sequence[str], line: str, wanted: int) -> bool:
    return len(words) == wanted


def lacks(words: Sequence[str], line: str, wanted: str) -> bool:
    return wanted not in line.lower()


# Whether words (of lower case) and the line that they are from keep a rule.
CHECKS: Mapping[str, Callable[[Sequence[str], str, Any], bool]] = {
    "closing": ends,
    "case": cased,
    "words": counted,
    "without": lacks,
}


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """Closeness is the fraction of rules kept; one more is that the topic is named. Silence keeps none."""
    line = line_of(texts)
    words = line.lower().split()
    kept = {name: bool(words) and CHECKS[name](words, line, wanted) for name, wanted in problem.data["rules"].items()}
    kept["topic"] = problem.data["topic"] in words
    return Turn(True, reward=sum(kept.values()) / len(kept), parts={name: float(kept[name]) for name in kept})


def answer(problem: Problem, texts: Sequence[str]) -> str:
    """The topic, words between that follow from it, and the closing word."""
    rules, topic = problem.data["rules"], problem.data["topic"]
    end = [rules["closing"]] if "closing" in rules else []
    fillers = [word for word in FILLERS if rules.get("without", "-") not in word]
    between = Random(topic).choices(fillers, k=rules.get("words", 3) - 1 - len(end))
    return CASES[rules.get("case", "lower")](" ".join([topic, *between, *end])) + END


KIND = Kind(draw, step, answer, options={"user": range(2**32)}, partial=1.0)
