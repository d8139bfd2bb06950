"""The examples of one JSONL file by number: validated once, tokenised once, cut to length."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from pefx.data.formats import FORMAT_VERSION, Example, Record, parse_record, tokenize, window, window_count
from pefx.data.jsonl import JsonlFile, index_jsonl
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError

# Bytes of lines tokenised together: enough to feed all cores, little beside a model.
BATCH_BYTES = 8_000_000
# Tokens kept in memory by one source (5 bytes each); lines beyond them are read and tokenised again when asked for.
CACHE_TOKENS = 32_000_000


class ExampleSource:
    """Random access to the examples of a file, as Grain's `MapDataset.source` wants it.

    `sequence_length` bounds the rows of an example (its tokens but the last). Longer `text` becomes windows; longer
    chats and completions are left out: `left_out` counts those lines and lines with nothing to learn.
    """

    def __init__(self, path: str, tokenizer: Tokenizer, sequence_length: int, cache_tokens: int = CACHE_TOKENS):
        """Reads and checks the whole file; raises PefxError at the first bad line, or when no line is usable."""
        if sequence_length < 1:
            raise PefxError(f"sequence_length is {sequence_length}; it must be at least 1")
        self.path = path
        self.sequence_length = sequence_length
        self._tokenizer = tokenizer
        self._file: JsonlFile = index_jsonl(path)
        self._cache_tokens = cache_tokens
        self._cached = 0
        self._lines: OrderedDict[int, Example] = OrderedDict()
        counts = np.zeros(len(self._file), np.int64)
        self.tokens = 0
        self.history = 0  # of the longest one, in tokens
        for first, records in self._batches():
            for line, (record, example) in enumerate(zip(records, tokenize(records, tokenizer)), first):
                counts[line] = window_count(example, record.splits, sequence_length)
                self.tokens += example.rows if counts[line] else 0
                self.history = max(self.history, sum(map(len, example.history)))
                self._remember(line, example)
        self.left_out = int(np.sum(counts == 0))
        self._ends = np.cumsum(counts)
        if not len(self):
            raise PefxError(
                f"{path}: no usable line: each of its {len(self._file)} is longer than data.sequence_length "
                f"({sequence_length} tokens) or has nothing to learn"
            )
        fields = [FORMAT_VERSION, self._file.sha256, tokenizer.digest, sequence_length]
        self.fingerprint = "sha256:" + hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        """Example `index` in file order, windows of one text in a row."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        line = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[line - 1]) if line else 0
        return window(self._line(line), index - before, self.sequence_length)

    def _line(self, line: int) -> Example:
        example = self._lines.get(line)
        if example is None:
            example = tokenize([self._record(line)], self._tokenizer)[0]
            self._remember(line, example)
        else:
            self._lines.move_to_end(line)
        return example

    def _record(self, line: int) -> Record:
        return parse_record(self._file.read(line), self._file.where(line), self._tokenizer)

    def _remember(self, line: int, example: Example) -> None:
        self._lines[line] = example
        self._cached += len(example.tokens)
        while self._cached > self._cache_tokens and self._lines:
            self._cached -= len(self._lines.popitem(last=False)[1].tokens)

    def _batches(self) -> Iterator[tuple[int, list[Record]]]:
        """(first line, records) in file order, about `BATCH_BYTES` each."""
        first, size, records = 0, 0, []
        for line in range(len(self._file)):
            records.append(self._record(line))
            size += int(self._file.ends[line] - self._file.offsets[line])
            if size >= BATCH_BYTES:
                yield first, records
                first, size, records = line + 1, 0, []
        if records:
            yield first, records
