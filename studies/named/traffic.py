"""Requests to named policies by number, alias or nothing, to the base, and to what there is not; and their judge."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from studies.named.people import PROMPT, Person, says

MAX_TOKENS = 12  # more than any name takes, and its end
# How many of a hundred requests ask for what.
MIX = {
    "latest": 50,
    "number": 20,
    "alias": 15,
    "base": 8,
    "no such policy": 3,
    "no such revision": 3,
    "no such alias": 1,
}
BUSY = 0.5  # of the requests go to a few; the rest to everyone alike, so that slots churn
FEW = 10


@dataclass(frozen=True)
class Asked:
    """A request, and its right answer: policy and revision (None: the bare base), or the sort of error."""

    policy: str | None
    revision: int | str | None
    number: int | None = None
    error: str | None = None

    def row(self, id: str) -> dict[str, Any]:
        """The request as a line of a file."""
        asked = {"id": id, "prompt": PROMPT, "policy": self.policy, "revision": self.revision}
        return asked | {"temperature": 0.0, "max_tokens": MAX_TOKENS}


def everything(everyone: Iterable[Person]) -> list[Asked]:
    """Every revision once, by its number, and the bare base."""
    return [Asked(None, None), *(Asked(p.name, n, n) for p in everyone for n in range(1, p.revisions + 1))]


def traffic(everyone: list[Person], count: int, seed: int) -> Iterator[Asked]:
    """`count` requests, drawn; the same for the same arguments."""
    rng = random.Random(seed)
    for sort in rng.choices(list(MIX), list(MIX.values()), k=count):
        person = rng.choice(everyone[:FEW] if rng.random() < BUSY else everyone)
        if sort == "base":
            yield Asked(None, None)
        elif sort == "latest":
            yield Asked(person.name, None, person.revisions)
        elif sort == "number":
            number = rng.randint(1, person.revisions)
            yield Asked(person.name, number, number)
        elif sort == "alias":
            alias = rng.choice(["latest", *person.aliases])
            yield Asked(person.name, alias, person.aliases.get(alias, person.revisions))
        elif sort == "no such policy":
            yield Asked(person.name + "0", None, error="unknown_policy")
        else:
            which = person.revisions + 1 if sort == "no such revision" else "staging"
            yield Asked(person.name, which, error="unknown_revision")


def judge(asked: Asked, row: dict[str, Any], alone: dict[tuple[str | None, int | None], list[int]]) -> str:
    """ "right", "refused" (rightly), or how the answer is wrong. `alone`: the tokens of each revision by itself."""
    if "error" in row:
        return "refused" if row["error"]["type"] == asked.error else f"error {row['error']['type']}"
    if asked.error is not None:
        return "answered what there is not"
    told = row["policy"], row["revision"]
    if told != (asked.policy, asked.number):
        return "another revision than asked"
    if asked.policy is not None and row["text"] != says(*told):
        return "not the name of its revision"
    return "right" if row["tokens"] == alone[told] else "other tokens than alone"


def count_verdicts(
    asked: Iterable[Asked], answers: Iterable[str], alone: dict[tuple[str | None, int | None], list[int]]
) -> Counter[str]:
    """Verdicts over an answer file, whose lines are in the order of the requests."""
    found: Counter[str] = Counter()
    lines = iter(answers)
    for index, each in enumerate(asked):
        line = next(lines, None)
        row = {} if line is None else json.loads(line)
        found["missing" if row.get("id") != str(index) else judge(each, row, alone)] += 1
    found["too many"] += sum(1 for _ in lines)
    return +found
