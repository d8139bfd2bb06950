"""One thing to measure, the same for all peers. Only the standard library, as protocol.py says why."""

import json
import random
from dataclasses import dataclass
from pathlib import Path


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
    warm_runs = 2  # the first compiles what a case needs, the second shows that nothing is left to compile

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
