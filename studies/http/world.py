"""What the studies of the server ask, and what the right answers are: those of `serve.py`'s batches."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.population.people import BASE, SPEC
from benchmarks.served.engines import commit_adapters, name_of
from pefx.config import ServeConfig
from pefx.families.config_json import read_config
from studies.programs.commands import answer

NEW = 10_000  # indices from here on are adapters that come while others are served


@dataclass(frozen=True)
class Question:
    """A request that has one right answer: it is drawn by its own seed. `index` None asks the bare base."""

    number: int
    index: int | None
    prompt: tuple[int, ...]
    new: int
    stream: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        drawn = {"temperature": 0.8, "top_p": 0.95, "seed": self.number, "ignore_eos": True}
        return {"prompt": list(self.prompt), "max_tokens": self.new, **drawn}

    @property
    def row(self) -> dict[str, Any]:
        """As a line of a request file."""
        policy = None if self.index is None else name_of(self.index)
        return {"id": str(self.number), "policy": policy, **self.fields}

    def body(self, base: str) -> dict[str, Any]:
        """As a body for a server whose base is called `base`."""
        model = base if self.index is None else name_of(self.index)
        return {"model": model, "stream": self.stream, **self.fields}


def questions(
    indices: Sequence[int | None], count: int, seed: int = 0, new: tuple[int, int] = (8, 64)
) -> list[Question]:
    """`count` questions to these adapters in turn, every other one streamed; prompts of 4 to 64 tokens."""
    rng, vocabulary = random.Random(seed), read_config(BASE).vocab_size
    made = []
    for i in range(count):
        prompt = tuple(rng.randrange(1, vocabulary) for _ in range(rng.randint(4, 64)))
        made.append(Question(1000 * seed + i, indices[i % len(indices)], prompt, rng.randint(*new), stream=i % 2 == 0))
    return made


def make_config(folder: Path, policies: int, slots: int, sequences: int) -> ServeConfig:
    """The shipped base with a new catalog of `policies` adapters."""
    catalog = folder / "catalog"
    commit_adapters(catalog, BASE, SPEC, range(policies))
    return ServeConfig(
        "load",
        str(BASE),
        str(catalog),
        slots=slots,
        sequences=sequences,
        max_rank=SPEC.rank,
        targets=SPEC.targets,
    )


def right_answers(folder: Path, config: ServeConfig, asked: Sequence[Question]) -> dict[int, list[int]]:
    """The tokens that answer each question, by its number."""
    answers = answer(config, [question.row for question in asked], folder, "reference")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    return {int(row["id"]): row["tokens"] for row in rows}
