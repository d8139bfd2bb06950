"""Files of requests and answers, by their ending: `.parquet` is Parquet, everything else JSONL."""

import hashlib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from pefx.errors import PefxError
from pefx.serving.requests import Request, RequestError, parse_line


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def writer_version(out: Path) -> dict[str, str]:
    """The software besides this that decides the bytes of `out`."""
    return {"pyarrow": version("pyarrow")} if is_parquet(out) else {}


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Size, count of requests (of lines those that are not blank) and SHA-256 of a request file, read to its end.

    Raises PefxError where it cannot be read, is damaged, or holds no request.
    """
    digest, size, count = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            for part in file if not is_parquet(path) else iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
                size, count = size + len(part), count + bool(part.strip())
    except OSError as error:
        raise PefxError(f"{path}: cannot read the requests: {error.strerror}") from None
    if is_parquet(path):
        count = _parquet().count_rows(path)
    if count == 0:
        each = "row" if is_parquet(path) else "line"
        raise PefxError(f"{path}: holds no request, expected one {'JSON object ' * (each == 'line')}on each {each}")
    return {"bytes": size, "requests": count, "sha256": digest.hexdigest()}


def read_requests(path: Path) -> Iterator[tuple[int, str, Request | RequestError]]:
    """Number of each line or row (from 1), where it is in words, and its request or what is wrong with it.

    A few are in memory at a time. Blank lines are passed over, and count.
    """
    if is_parquet(path):
        yield from _parquet().read_rows(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name} line {number}"
                try:
                    yield number, where, parse_line(line, where)
                except RequestError as error:
                    yield number, where, error


def write_answers(out: Path, file: BufferedIOBase, answers: Iterator[bytes]) -> None:
    """Write answers, each a JSON object, to a file that will be `out`."""
    if is_parquet(out):
        _parquet().write_answers(file, answers)
    else:
        file.writelines(answer + b"\n" for answer in answers)


def _parquet() -> Any:
    """Imported only where such a file is named: others begin sooner."""
    return import_module("pefx.serving.parquet")
