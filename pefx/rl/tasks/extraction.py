"""Fields of a short text as JSON: `json ann is 31` is answered by `{"who":"ann","age":31}`."""

import json
from collections.abc import Sequence
from random import Random

from pefx.rl.tasks.kind import Kind, Options, line_of
from pefx.rl.tasks.protocol import END, Problem, Turn

NAMES = [
    "ann", "bob", "cal", "dan", "eve", "fay", "gus", "hal", "ian", "joy", "kim", "leo", "mia", "ned", "ola", "pia",
    "ray", "sue", "tom", "una", "vic", "wes", "zoe",
]  # fmt: skip
PLACES = ["bern", "kyiv", "lima", "oslo", "paris", "perth", "quito", "rome", "seoul", "turin"]
THINGS = ["bike", "boat", "book", "cat", "dog", "drum", "hat", "kite", "lamp", "ring"]
# How a field may be told; the first is always there.
TOLD = (
    ("who", ("{who} is {age}", "{age} is {who}", "{who}, {age}")),
    ("at", ("in {at}", "from {at}", "near {at}")),
    ("has", ("with a {has}", "has a {has}")),
)


def draw(random: Random, level: int, options: Options) -> Problem:
    """A name and an age at level 1; at level 2 also a place, from level 3 on a thing, then more people."""
    people = [_person(random, level) for _ in range(max(1, level - 2))]
    text = "; ".join(told for told, _ in people)
    fields = [fields for _, fields in people]
    wanted = fields[0] if len(fields) == 1 else fields
    return Problem(f"json {text}{END}", {"wanted": wanted})


def _person(random: Random, level: int) -> tuple[str, dict[str, str | int]]:
    values = {
        "who": random.choice(NAMES),
        "age": random.randrange(1, 100),
        "at": random.choice(PLACES),
        "has": random.choice(THINGS),
    }
    told = TOLD[: min(level, len(TOLD))]
    names = ["who", "age"] + [name for name, _ in told[1:]]
    text = " ".join(random.choice(forms).format(**values) for _, forms in told)
    return text, {name: values[name] for name in names}


def step(problem: Problem, texts: Sequence[str]) -> Turn:
    """Closeness is the fraction of fields that are right, among those wanted and those given."""
    wanted = problem.data["wanted"]
    try:
        said = json.loads(line_of(texts), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return Turn(True, parts={"parsed": 0.0})
    shaped = isinstance(said, list) == isinstance(wanted, list)
    ours, theirs = _flat(wanted), _flat(said)
    names = ours.keys() | theirs.keys()
    right = sum(name in ours and name in theirs and _same(ours[name], theirs[name]) for name in names)
    return Turn(True, reward=right / len(names) if shaped else 0.0, parts={"parsed": 1.0})


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field is given twice")
    return dict(pairs)


def _flat(value: object) -> dict[tuple[int, str], object]:
    """The fields of an object, or of a list of objects, by place and name; whatever is none is one wrong field."""
    rows = value if isinstance(value, list) else [value]
    found: dict[tuple[int, str], object] = {}
    for place, row in enumerate(rows):
        found |= {(place, name): item for name, item in row.items()} if isinstance(row, dict) else {(place, ""): row}
    return found


def _same(a: object, b: object) -> bool:
    """Equal, and of one type: 1 is neither true nor 1.0."""
    return type(a) is type(b) and a == b


def answer(problem: Problem, texts: Sequence[str]) -> str:
    return json.dumps(problem.data["wanted"], separators=(",", ":")) + END


KIND = Kind(draw, step, answer)
