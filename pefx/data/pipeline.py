"""A user's examples in an order that is a function of (data, seed, position), as many as a step has room for.

A position is the number of examples taken since the start, over all epochs. It is the whole state of a stream: who
else trains, and what a stream served before, changes nothing.
"""

import hashlib
import json

import grain
import numpy as np

from pefx.config import DataConfig, UserConfig
from pefx.data.formats import Example, history_pages
from pefx.data.source import ExampleSource
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.packing import whole_pages

# Held-out examples are the same for every run that reads the file, whatever its seed.
HELDOUT_SEED = 0


class UserStream:
    """The endless shuffled examples of one source: source, seed, shuffle (anew each epoch), repeat."""

    def __init__(self, source: ExampleSource, seed: int):
        if not 0 <= seed < 2**32:
            raise PefxError(f"the data seed is {seed}; it must lie in 0..{2**32 - 1}")
        self.source = source
        self.fingerprint = _fingerprint([source.fingerprint, seed])
        self._examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()

    def __getitem__(self, position: int) -> Example:
        """The example at a position, any number from 0."""
        example = self._examples[position]
        assert example is not None, "only a filtered dataset has gaps"
        return example

    def take(self, position: int, tokens_budget: int, page_size: int) -> tuple[list[Example], int]:
        """The next examples, in order, whose rows fit `tokens_budget` when each occupies whole pages; the new position.

        There is always at least one: raises PefxError when the longest example there may be would not fit.
        """
        length, history = self.source.sequence_length, self.source.history
        longest = (whole_pages(length, page_size) + history_pages(history, page_size, length)) * page_size
        if longest > tokens_budget:
            behind = f", behind a history of {history} tokens," if history else ""
            raise PefxError(
                f"data.sequence_length {length}{behind} occupies {longest} tokens in pages of "
                f"{page_size}, more than data.tokens_per_user {tokens_budget}"
            )
        taken: list[Example] = []
        room = tokens_budget
        while True:
            example = self[position + len(taken)]
            room -= example.pages(page_size, length) * page_size
            if room < 0:
                return taken, position + len(taken)
            taken.append(example)


def heldout_examples(source: ExampleSource, tokens: int) -> list[Example]:
    """Examples of at most `tokens` rows together (at least one), drawn over the whole file in an order fixed by it."""
    order = np.random.Generator(np.random.PCG64(HELDOUT_SEED)).permutation(len(source))
    chosen: list[Example] = []
    for index in order:
        example = source[int(index)]
        tokens -= example.rows
        if chosen and tokens < 0:
            break
        chosen.append(example)
    return chosen


def user_seed(seed: int, name: str) -> int:
    """The seed of a user's order, from the run's data seed and the user's name alone: neighbours do not shift it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def train_stream(user: UserConfig, data: DataConfig, tokenizer: Tokenizer) -> UserStream:
    """The training stream of a user that has a file; raises PefxError naming user, file and line."""
    assert user.train is not None
    seed = user_seed(data.seed, user.name) if user.seed is None else user.seed
    return UserStream(_open(user, user.train, data, tokenizer), seed)


def heldout_set(user: UserConfig, data: DataConfig, tokenizer: Tokenizer) -> list[Example]:
    """The held-out examples of a user, none when it has no file; raises PefxError naming user, file and line."""
    if user.heldout is None:
        return []
    return heldout_examples(_open(user, user.heldout, data, tokenizer), data.heldout_tokens)


def _open(user: UserConfig, path: str, data: DataConfig, tokenizer: Tokenizer) -> ExampleSource:
    try:
        return ExampleSource(path, tokenizer, data.sequence_length)
    except PefxError as error:
        raise PefxError(f"user '{user.name}': {error}") from None


def _fingerprint(fields: list[object]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(fields).encode()).hexdigest()
