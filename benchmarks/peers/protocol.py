"""What a peer worker and the program that drives it say to each other: one JSON object per line, both ways.

Only the standard library, because each worker runs in an environment of its own that has no pefx. Import this module
before any other: it keeps standard output for the answers and sends everything else that is printed to standard error.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

WARM_RUNS = 2  # the first compiles what a case needs, the second shows that nothing is left to compile


@dataclass(frozen=True)
class Case:
    """One thing to measure. `length` is for training; `prompt` and `new` are for generation."""

    kind: str  # "train" or "generate"
    adapters: int  # sequence i belongs to adapter i % adapters; 0: the bare base
    sequences: int
    slots: int  # of the resident bank, where the peer has one
    rank: int
    seed: int
    length: int = 0
    prompt: int = 0
    new: int = 0

    def __post_init__(self) -> None:
        wanted = {"train": ["length", "adapters"], "generate": ["prompt", "new"]}
        if self.kind not in wanted:
            raise ValueError(f"kind must be one of {sorted(wanted)}, not {self.kind!r}")
        for name in [*wanted[self.kind], "sequences", "rank"]:
            if getattr(self, name) < 1:
                raise ValueError(f"{self.kind!r} needs {name} of at least 1")
        if self.adapters and self.sequences % self.adapters:
            raise ValueError(f"{self.sequences} sequences do not share out over {self.adapters} adapters")

    @property
    def tokens(self) -> int:
        """How many tokens one repetition counts: those trained on, or those generated."""
        return self.sequences * (self.length if self.kind == "train" else self.new)

    def draw(self, vocab_size: int) -> list[list[int]]:
        """Random tokens of each sequence, the same for all peers.

        In training there is one more than `length`, so that every position has a target.
        """
        source = random.Random(self.seed)
        size = self.length + 1 if self.kind == "train" else self.prompt
        return [[source.randrange(vocab_size) for _ in range(size)] for _ in range(self.sequences)]


def vocab_size(model_dir: Path) -> int:
    """The vocabulary of a model in Hugging Face form."""
    return json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def serve(prepare: Callable[[Case], Callable[[], float]]) -> None:
    """Answers commands until `quit` or the end of the input.

    `prepare` builds what a case needs and returns a function that does one repetition and says its seconds.
    """
    run: Callable[[], float] | None = None
    tokens = 0
    for line in sys.stdin:
        try:
            command: dict[str, Any] = json.loads(line)
            match command["op"]:
                case "prepare":
                    run = None
                    case = Case(**command["case"])
                    prepared = prepare(case)
                    for _ in range(WARM_RUNS):
                        prepared()
                    run, tokens = prepared, case.tokens
                    answer: dict[str, Any] = {"ok": True}
                case "run":
                    if run is None:
                        raise ValueError("no case is prepared")
                    answer = {"seconds": run(), "tokens": tokens}
                case "quit":
                    return
                case other:
                    raise ValueError(f"unknown op {other!r}")
        except Exception as error:  # noqa: BLE001 - whatever a library raises is an answer, and the worker goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)
