"""Requests and answers as Parquet, what JSONL holds and no less. Imported only where such a file is named.

Requests: a column a field, null where a request does not have it. One column has one type, so `prompt` is text, and
token ids stand in `prompt_tokens`; `json_schema` is JSON text; `logit_bias` a map or JSON text.
Answers: the columns of `ANSWERS`, all of them in every file, null where JSONL has null or nothing.
"""

import json
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pefx.errors import PefxError
from pefx.serving.requests import FIELDS, Request, RequestError, checked

ROWS = 256  # read at once
GROUP_ROWS, GROUP_BYTES = 8192, 4 << 20  # of a row group of answers: the first that is reached, as JSON

TOP = pa.list_(pa.list_(pa.struct([("token", pa.int32()), ("logprob", pa.float32())])))
TEXT_TO_REASON = [
    ("text", pa.string()),
    ("tokens", pa.list_(pa.int32())),
    ("logprobs", pa.list_(pa.float32())),
    ("top_logprobs", TOP),
    ("finish_reason", pa.string()),
]
ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("policy", pa.string()),
        ("revision", pa.int64()),
        *TEXT_TO_REASON,
        ("prompt_logprobs", pa.list_(pa.float32())),
        ("choices", pa.list_(pa.struct(TEXT_TO_REASON))),
        ("remembered", pa.string()),
        ("error", pa.struct([("type", pa.string()), ("message", pa.string())])),
    ]
)

Check = Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _list_of(check: Check) -> Check:
    def is_list(kind: pa.DataType) -> bool:
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return listed and (pa.types.is_null(kind.value_type) or check(kind.value_type))  # null: all of them empty

    return is_list


def _is_bias(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return (pa.types.is_integer(kind.key_type) or _is_text(kind.key_type)) and _is_number(kind.item_type)
    return _is_text(kind)


TOKENS = ("a list of integers", _list_of(pa.types.is_integer))
# What the column of a field may be, where its kind of value does not say it.
COLUMNS: dict[str, tuple[str, Check]] = {
    "revision": ("integers or strings", lambda kind: pa.types.is_integer(kind) or _is_text(kind)),
    "prompt": ("strings or lists of integers", lambda kind: _is_text(kind) or TOKENS[1](kind)),
    "prompt_tokens": TOKENS,
    "logit_bias": ("a map of token ids to numbers, or strings of JSON", _is_bias),
    "stop": ("lists of strings", _list_of(_is_text)),
    "stop_token_ids": TOKENS,
    "writes": ("strings", _is_text),
}
KINDS: dict[Any, tuple[str, Check]] = {
    int: ("integers", pa.types.is_integer),
    float: ("numbers", _is_number),
    bool: ("booleans", pa.types.is_boolean),
    str: ("strings", _is_text),
}


def wanted(name: str) -> tuple[str, Check]:
    """What the column of a field must be, in words, and the check."""
    if name in COLUMNS:
        return COLUMNS[name]
    kinds = [kind for kind in KINDS if kind in _types_of(name)]
    return KINDS[kinds[0]]


def _types_of(name: str) -> tuple[Any, ...]:
    kind = Request.__annotations__[name]
    return getattr(kind, "__args__", (kind,))


def count_rows(path: Path) -> int:
    """How many requests the file holds, every one of them decoded. Raises PefxError where it is no such file."""
    return sum(batch.num_rows for batch in _batches(path))


def read_rows(path: Path) -> Iterator[tuple[int, str, Request | RequestError]]:
    """Number of a row (from 1), where it is in words, and its request or what is wrong with it, a few in memory."""
    number = 0
    for batch in _batches(path):
        for values in batch.to_pylist():
            number += 1
            where = f"{path.name} row {number}"
            try:
                yield number, where, checked(_as_json(values, where), where)
            except RequestError as error:
                yield number, where, error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16, page_checksum_verification=True) as file:
            _check_columns(path, file.schema_arrow)
            for batch in file.iter_batches(ROWS, use_threads=False):
                batch.validate(full=True)
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise PefxError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _check_columns(path: Path, schema: pa.Schema) -> None:
    known = [*FIELDS, "prompt_tokens"]
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name not in known:
            raise PefxError(f"{path}: unknown column '{name}'; known are {', '.join(known)}")
        words, valid = wanted(name)
        if not pa.types.is_null(kind) and not valid(kind):
            raise PefxError(f"{path}: column '{name}' must hold {words}, it holds {kind}")
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise PefxError(f"{path}: column '{twice}' is there twice")


def _as_json(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A row as the JSON object that a line would hold."""
    row = {name: value for name, value in values.items() if value is not None}
    tokens = row.pop("prompt_tokens", None)
    if tokens is not None:
        if "prompt" in row:
            message = f"{where}, field 'prompt_tokens': there is a prompt too, one of the two must be null"
            raise RequestError(message, id=row.get("id") or None)
        row["prompt"] = tokens
    revision = row.get("revision")
    if isinstance(revision, str) and revision.isascii() and revision.isdigit():
        row["revision"] = int(revision)
    for name in ("json_schema", "logit_bias"):
        if isinstance(row.get(name), str):
            try:
                row[name] = json.loads(row[name])
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}, field '{name}': broken JSON: {error}", id=row.get("id") or None) from None
        elif name in row:
            row[name] = {str(token): bias for token, bias in row[name]}
    return row


def write_answers(file: BufferedIOBase, answers: Iterator[bytes]) -> None:
    """Write answers, each a JSON object, in row groups. The same bytes for the same answers and version of pyarrow."""
    with pq.ParquetWriter(file, ANSWERS, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for answer in answers:
            group.append(_as_row(json.loads(answer)))
            size += len(answer)
            if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, ANSWERS))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, ANSWERS))


def _as_row(answer: dict[str, Any]) -> dict[str, Any]:
    unknown = answer.keys() - set(ANSWERS.names)
    if unknown:
        raise RuntimeError(f"answers have fields that the Parquet schema lacks: {sorted(unknown)}")
    for part in (answer, *(answer.get("choices") or ())):
        if part.get("top_logprobs") is not None:
            part["top_logprobs"] = [
                [{"token": token, "logprob": logprob} for token, logprob in place] for place in part["top_logprobs"]
            ]
    return answer
