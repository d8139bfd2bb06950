"""Histories of facts, each told once, and a question about one of them: what memories are trained and asked with."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from pefx.config import UserConfig
from pefx.rl.tasks.facts import COLOURS, PEOPLE, THINGS, WORDINGS
from pefx.rl.tasks.protocol import END
from studies.populations.cells import Subject, Subjects

TRAIN, SELECTION = 4000, 100  # lines


@dataclass(frozen=True)
class Asked:
    """The facts of a history as text, a question about one of them (`asked`, by its place), and its answer."""

    facts: tuple[str, ...]
    asked: int
    question: str
    answer: str
    others: tuple[tuple[str, str], ...]  # the same facts asked for in the other wordings, with their answers

    @property
    def found(self) -> str:
        """The fact that shares most words with the question: what a search would bring."""
        words = set(self.question.replace("?", " ").split())
        return max(self.facts, key=lambda fact: len(words & set(fact.split())))


def asked(part: str, seed: int, count: int) -> Iterator[Asked]:
    """Without end, histories of `count` facts. A pure function; parts and seeds have others."""
    random = Random(f"histories {part} {seed} {count}")
    while True:
        places = random.sample([(who, thing) for who in PEOPLE for thing in THINGS], count)
        colours = [random.choice(COLOURS) for _ in places]
        place, wording = random.randrange(count), random.choice(WORDINGS)
        told = [(who, thing, colour) for (who, thing), colour in zip(places, colours, strict=True)]
        others = tuple(
            (other.format(who=who, thing=thing) + END, colour + END)
            for who, thing, colour in told
            for other in WORDINGS
            if other != wording
        )
        who, thing, colour = told[place]
        question = wording.format(who=who, thing=thing) + END
        yield Asked(tuple(" ".join(fact) for fact in told), place, question, colour + END, others)


def subjects(folder: Path, count: int) -> Subjects:
    """Of each seed, files with histories of so many facts."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(seed: int) -> Subject:
        paths = {}
        for part, size in (("train", TRAIN), ("selection", SELECTION)):
            paths[part] = folder / f"{part}-{seed}.jsonl"
            lines = [json.dumps(line(own)) + "\n" for own in islice(asked(part, seed, count), size)]
            paths[part].write_text("".join(lines), encoding="utf-8")
        user = UserConfig("one", train=str(paths["train"]), heldout=str(paths["selection"]))
        return Subject(user, user)

    return one


def line(own: Asked) -> dict[str, object]:
    """As training reads it."""
    history = [fact + END for fact in own.facts]
    return {"history": history, "prompt": own.question, "completion": own.answer}
