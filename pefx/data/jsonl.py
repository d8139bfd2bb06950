"""JSONL files, line by line: where each line lies, what it says, and errors that name file and line."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pefx.errors import PefxError


@dataclass(frozen=True)
class JsonlFile:
    """The lines of one file by position: `offsets` and `ends` int64[n] in bytes, `numbers` int64[n] (from 1).

    Blank lines are none. `sha256` is that of the bytes; `stamp` tells whether the file is still the one indexed.
    """

    path: str
    offsets: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray
    sha256: str
    stamp: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int) -> bytes:
        """The bytes of line `index`. Raises PefxError if the file changed since it was indexed."""
        start, end = int(self.offsets[index]), int(self.ends[index])
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if _stamp(descriptor) != self.stamp:
                raise PefxError(f"{self.path}: the file changed while it was in use; start again to use the new one")
            return os.pread(descriptor, end - start, start)
        finally:
            os.close(descriptor)

    def where(self, index: int) -> str:
        """`file: line k`, for messages."""
        return f"{self.path}: line {self.numbers[index]}"


def index_jsonl(path: str) -> JsonlFile:
    """Finds the lines of a file in one pass; raises PefxError when it is missing, unreadable or has none."""
    offsets: list[int] = []
    ends: list[int] = []
    numbers: list[int] = []
    digest = hashlib.sha256()
    at = 0
    try:
        with open(path, "rb") as file:
            stamp = _stamp(file.fileno())
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    offsets.append(at)
                    ends.append(at + len(line))
                    numbers.append(number)
                at += len(line)
    except FileNotFoundError:
        raise PefxError(f"{path}: no such file") from None
    except OSError as error:
        raise PefxError(f"{path}: cannot be read ({error.strerror})") from None
    if not numbers:
        raise PefxError(f"{path}: the file is empty; it needs at least one line of JSON")
    columns = [np.asarray(column, np.int64) for column in (offsets, ends, numbers)]
    return JsonlFile(path, *columns, sha256=digest.hexdigest(), stamp=stamp)


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line; raises PefxError starting with `where` for anything else."""
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise PefxError(f"{where}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise PefxError(f"{where}: broken JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise PefxError(f"{where}: broken JSON: {error}") from None
    if not isinstance(row, dict):
        raise PefxError(f"{where}: expected a JSON object, got {json_type(row)}")
    return row


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """The string in `row[field]`; raises PefxError when it is missing, no string, or half of a surrogate pair."""
    if field not in row:
        raise PefxError(f"{where}: field '{field}' is missing")
    value = row[field]
    if not isinstance(value, str):
        raise PefxError(f"{where}: field '{field}' must be a string, got {json_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PefxError(f"{where}: field '{field}' holds half of a surrogate pair, which is not text") from None
    return value


def read_texts(path: str | Path) -> Iterator[str]:
    """The `text` of every line of a file, in order, without holding the file in memory."""
    file = index_jsonl(str(path))
    for index in range(len(file)):
        where = file.where(index)
        yield text_field(parse_object(file.read(index), where), "text", where)


def json_type(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field '{next(n for n in names if names.count(n) > 1)}' is given twice")
    return row


def _stamp(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns
