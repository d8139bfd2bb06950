"""Requests of mixed lengths to answer, the same for all peers. Only the standard library, as protocol.py says why."""

import random
from dataclasses import dataclass
from typing import NamedTuple


class Asked(NamedTuple):
    """One request: token ids, how many new tokens it wants (end tokens are ignored), and the index of its adapter."""

    prompt: list[int]
    new: int
    adapter: int


@dataclass(frozen=True)
class Traffic:
    """`requests` requests, all there from the start, lengths uniform between the bounds.

    `first` of them are answered (0: all): enough where a peer's rate does not depend on how many there are. `batch` is
    how many run at once, `way` a peer's own word for how they are batched.
    """

    requests: int
    adapters: int  # drawn so that all have the same number of requests, in random order
    batch: int
    way: str
    kind: str = "serve"
    rank: int = 16
    seed: int = 1
    first: int = 0
    prompt_least: int = 16
    prompt_most: int = 256
    new_least: int = 8
    new_most: int = 128
    warm_runs = 1  # one run is long, and needs every shape that any run needs

    def __post_init__(self) -> None:
        for name in ("requests", "adapters", "batch", "rank", "prompt_least", "new_least"):
            if getattr(self, name) < 1:
                raise ValueError(f"traffic needs {name} of at least 1")
        if self.requests % self.adapters:
            raise ValueError(f"{self.requests} requests do not share out over {self.adapters} adapters")

    @property
    def context(self) -> int:
        """Tokens of the longest request with its answer."""
        return self.prompt_most + self.new_most

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each answered prompt, and of its answer."""
        source = random.Random(self.seed)
        bounds = (self.prompt_least, self.prompt_most), (self.new_least, self.new_most)
        drawn = [(source.randint(*bounds[0]), source.randint(*bounds[1])) for _ in range(self.requests)]
        return drawn[: self.first or None]

    def draw(self, vocab_size: int, turn: int = 0) -> list[Asked]:
        """The requests that are answered. Another `turn` has other words, so that no cache knows them."""
        source = random.Random(f"{self.seed}-{turn}")
        owners = [i % self.adapters for i in range(self.requests)]
        source.shuffle(owners)
        words = (([source.randrange(vocab_size) for _ in range(size)], new) for size, new in self.lengths())
        return [Asked(prompt, new, owner) for (prompt, new), owner in zip(words, owners)]

    @property
    def tokens(self) -> int:
        """How many tokens one repetition generates."""
        return sum(new for _, new in self.lengths())

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the answered prompts have."""
        return sum(size for size, _ in self.lengths())


def longest_first(asked: list[Asked]) -> list[Asked]:
    """By the length of the answers, which only who ignores end tokens knows beforehand: the best for fixed batches."""
    return sorted(asked, key=lambda one: -one.new)
