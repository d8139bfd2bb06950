"""Plain text as one long line of tokens, cut into windows whose shuffled order is a function of seed and position."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import grain
import numpy as np

from pefx.data.jsonl import read_texts
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError


class Windows:
    """Windows of `length + 1` tokens over the texts of a JSONL file; each text ends with the end-of-text token.

    `fingerprint` names the token sequence. Neighbouring windows share one token, so every token is a target once.
    """

    def __init__(self, path: str, tokenizer: Tokenizer, length: int):
        pieces: list[np.ndarray] = []
        for texts in batched(read_texts(path), 256):
            pieces += [np.asarray([*ids, tokenizer.eos], np.int32) for ids in tokenizer.encode_batch(texts)]
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        count = (len(tokens) - 1) // length
        if count < 1:
            raise PefxError(f"{path}: {len(tokens)} tokens of text are too few for one window of {length}")
        self.length = length
        self.tokens = tokens
        self.fingerprint = "sha256:" + hashlib.sha256(tokens.tobytes()).hexdigest()
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self.length
        return self.tokens[start : start + self.length + 1]

    def shuffled(self, seed: int) -> Any:
        """An endless order of windows by position: epoch after epoch, each in its own order."""
        return grain.MapDataset.source(self).seed(seed).shuffle().repeat()


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` texts, the last one shorter."""
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
