"""pefx.serving.parquet: rows are what lines would be, and answers come back as they were."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.serving import parquet
from pefx.serving.answers import number, to_json
from pefx.serving.parquet import ANSWERS, count_rows, read_rows, wanted, write_answers
from pefx.serving.requests import FIELDS, Request, RequestError, checked


def requests_of(table: pa.Table, path: Path) -> list[Request | RequestError]:
    pq.write_table(table, path)
    return [found for _, _, found in read_rows(path)]


FULL = {
    "id": "a",
    "policy": "alice",
    "revision": 3,
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.25,
    "repetition_penalty": 1.5,
    "presence_penalty": -1.0,
    "frequency_penalty": 2.0,
    "seed": 9,
    "n": 2,
    "best_of": 3,
    "stop": ["end", "\n"],
    "stop_token_ids": [3],
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 2,
    "prompt_logprobs": True,
    "priority": -4,
}
SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """What a person would write with pyarrow for these JSON rows."""
    bias = pa.map_(pa.int64(), pa.float64())
    columns: dict[str, Any] = {}
    for name in sorted({name for row in rows for name in row} - {"prompt", "logit_bias", "json_schema"}):
        columns[name] = [row.get(name) for row in rows]
    columns["prompt"] = [row["prompt"] if isinstance(row["prompt"], str) else None for row in rows]
    tokens = [None if isinstance(row["prompt"], str) else row["prompt"] for row in rows]
    columns["prompt_tokens"] = pa.array(tokens, pa.list_(pa.int32()))
    columns["json_schema"] = [json.dumps(row["json_schema"]) if "json_schema" in row else None for row in rows]
    pairs = [[(int(k), v) for k, v in row["logit_bias"].items()] if "logit_bias" in row else None for row in rows]
    columns["logit_bias"] = pa.array(pairs, bias)
    return pa.table(columns)


def test_rows_are_what_lines_are(tmp_path: Path):
    rows = [
        {**FULL, "prompt": "é"},
        {"id": "b", "prompt": [1, 2], "logit_bias": {"5": 1.5, "7": -100.0}},
        {"id": "c", "prompt": "x", "json_schema": SCHEMA},
        {"id": "d", "prompt": "x", "regex": "a+"},
    ]
    assert requests_of(as_table(rows), tmp_path / "in.parquet") == [checked(row, "") for row in rows]


prompts = st.text("aé→\n", min_size=1, max_size=5) | st.lists(st.integers(0, 99), min_size=1, max_size=4)
optional = {
    "policy": st.sampled_from(["alice", "bob"]),
    "temperature": st.floats(0, 2),
    "seed": st.integers(0, 2**32 - 1),
    "stop": st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
    "logit_bias": st.dictionaries(st.integers(0, 99).map(str), st.floats(-100, 100), max_size=3),
    "logprobs": st.booleans(),
    "priority": st.integers(-200, 200),  # some are refused
}
rows_of_requests = st.lists(
    st.fixed_dictionaries({"id": st.text("ab", min_size=1, max_size=3), "prompt": prompts}, optional=optional),
    min_size=1,
    max_size=8,
)


@given(rows_of_requests)
def test_requests_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]):
    path = tmp_path_factory.mktemp("rows") / "in.parquet"
    for number_, (found, row) in enumerate(zip(requests_of(as_table(rows), path), rows, strict=True), 1):
        try:
            expected = repr(checked(row, f"in.parquet row {number_}"))
        except RequestError as error:
            expected = repr(error)
        assert repr(found) == expected


def test_every_field_has_a_column():
    for name in (*FIELDS, "prompt_tokens"):
        words, _ = wanted(name)
        assert words


@pytest.mark.parametrize(
    ("column", "kind", "value", "field", "expected"),
    [
        ("prompt", pa.list_(pa.uint16()), [1, 2], "prompt", (1, 2)),
        ("prompt_tokens", pa.large_list(pa.int64()), [1, 2], "prompt", (1, 2)),
        ("prompt", pa.large_string(), "x", "prompt", "x"),
        ("policy", pa.dictionary(pa.int8(), pa.string()), "alice", "policy", "alice"),
        ("revision", pa.string(), "7", "revision", 7),
        ("revision", pa.string(), "stable", "revision", "stable"),
        ("writes", pa.string(), "none", "writes", "none"),
        ("remember", pa.string(), "p/notes", "remember", "p/notes"),
        ("temperature", pa.float32(), 0.5, "temperature", 0.5),
        ("temperature", pa.int32(), 0, "temperature", 0.0),
        ("logit_bias", pa.string(), '{"3": 1}', "logit_bias", ((3, 1.0),)),
        ("logit_bias", pa.map_(pa.string(), pa.float32()), [("3", 1.0)], "logit_bias", ((3, 1.0),)),
    ],
)
def test_kinds_of_columns(tmp_path: Path, column: str, kind: pa.DataType, value: Any, field: str, expected: Any):
    columns: dict[str, Any] = {"id": ["a"], "policy": ["p"], "seed": pa.nulls(1), column: pa.array([value], kind)}
    if not column.startswith("prompt"):
        columns["prompt"] = ["y"]
    (request,) = requests_of(pa.table(columns), tmp_path / "in.parquet")
    assert getattr(request, field) == expected


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"prompt": ["x"]}, "row 1, field 'id': missing"),
        ({"id": ["a"], "prompt": [None]}, "row 1, field 'prompt': missing"),
        ({"id": ["a"], "prompt": ["x"], "prompt_tokens": [[1]]}, "field 'prompt_tokens': there is a prompt too"),
        ({"id": ["a"], "prompt": ["x"], "json_schema": ["{"]}, "field 'json_schema': broken JSON"),
        ({"id": ["a"], "prompt": ["x"], "json_schema": ["[]"]}, "field 'json_schema': must be a JSON schema"),
        ({"id": ["a"], "prompt": ["x"], "stop": [["a", None]]}, "field 'stop'"),
        ({"id": ["a"], "prompt": ["x"], "temperature": [float("nan")]}, "field 'temperature'"),
        ({"id": ["a"], "prompt": ["x"], "max_tokens": [-1]}, "field 'max_tokens'"),
    ],
)
def test_a_bad_row_is_one_bad_request(tmp_path: Path, columns: dict[str, list], part: str):
    (error,) = requests_of(pa.table(columns), tmp_path / "in.parquet")
    assert isinstance(error, RequestError)
    assert str(error).startswith("in.parquet row 1")
    assert part in str(error)
    assert error.id == columns.get("id", [None])[0]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"polcy": ["x"]}, "unknown column 'polcy'; known are id, "),
        ({"max_tokens": [16.0]}, "column 'max_tokens' must hold integers, it holds double"),
        ({"prompt": [b"x"]}, "column 'prompt' must hold strings or lists of integers, it holds binary"),
        ({"json_schema": [{"type": "object"}]}, "column 'json_schema' must hold strings"),
    ],
)
def test_a_file_with_wrong_columns_is_refused(tmp_path: Path, columns: dict[str, list], part: str):
    pq.write_table(pa.table({"id": ["a"], **columns}), tmp_path / "in.parquet")
    with pytest.raises(PefxError) as caught:
        count_rows(tmp_path / "in.parquet")
    assert part in str(caught.value)
    assert "in.parquet" in str(caught.value)


def test_a_damaged_file_is_refused_before_it_is_served(tmp_path: Path):
    path = tmp_path / "in.parquet"
    table = pa.table({"id": [f"r{i}" for i in range(3000)], "prompt": [f"prompt {i}" for i in range(3000)]})
    pq.write_table(table, path, write_page_checksum=True)
    whole = path.read_bytes()
    assert count_rows(path) == 3000
    for cut in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(PefxError, match=r"in\.parquet: cannot be read as Parquet") as caught:
            count_rows(path)
        assert "\n" not in str(caught.value)
    for place in (200, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(PefxError, match=r"in\.parquet: cannot be read as Parquet"):
            count_rows(path)
    path.write_text('{"id": "a", "prompt": "x"}\n')
    with pytest.raises(PefxError, match="cannot be read as Parquet"):
        count_rows(path)


def from_table(table: pa.Table) -> list[dict[str, Any]]:
    """Answers as JSONL has them."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        for name in ("logprobs", "prompt_logprobs"):
            if part.get(name) is not None:
                part[name] = [None if value is None else number(value) for value in part[name]]
        if part["top_logprobs"] is None:
            del part["top_logprobs"]
        else:
            part["top_logprobs"] = [
                [[t["token"], number(t["logprob"])] for t in place] for place in part["top_logprobs"]
            ]
        return part

    rows = []
    for row in table.to_pylist():
        if row["error"] is not None:
            rows.append({"id": row["id"], "error": row["error"]})
            continue
        del row["error"]
        if row["remembered"] is None:
            del row["remembered"]
        choices = row.pop("choices")
        rows.append(plain(row) | ({} if choices is None else {"choices": [plain(choice) for choice in choices]}))
    return rows


logprob = st.floats(-50, 0, width=32).map(lambda value: number(float(np.float32(value))))
maybe = st.none() | st.lists(logprob, max_size=3)
top = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), logprob).map(list), max_size=2), max_size=2)
parts = {
    "text": st.text(max_size=6),
    "tokens": st.lists(st.integers(0, 2**31 - 1), max_size=3),
    "logprobs": maybe,
    "finish_reason": st.sampled_from(["stop", "length"]),
}
choice = st.fixed_dictionaries(parts, optional={"top_logprobs": top})
answered = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=4),
        "policy": st.none() | st.text(min_size=1, max_size=4),
        "revision": st.none() | st.integers(1, 2**40),
        **parts,
        "prompt_logprobs": st.none() | st.lists(logprob, max_size=3).map(lambda values: [None, *values]),
    },
    optional={
        "top_logprobs": top,
        "choices": st.lists(choice, min_size=2, max_size=3),
        "remembered": st.text(min_size=1, max_size=4),
    },
)
refused = st.fixed_dictionaries(
    {
        "id": st.none() | st.text(min_size=1, max_size=4),
        "error": st.fixed_dictionaries({"type": st.text(max_size=5), "message": st.text(max_size=5)}),
    }
)


@given(st.lists(answered | refused, max_size=8))
def test_answers_round_trip_and_have_the_same_bytes(rows: list[dict[str, Any]]):
    files = []
    for _ in range(2):
        files.append(io.BytesIO())
        write_answers(files[-1], map(to_json, rows))
    assert files[0].getvalue() == files[1].getvalue()
    table = pq.read_table(files[0])
    assert table.schema == ANSWERS
    assert from_table(table) == rows


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch):
    for limit, value in (("GROUP_ROWS", 10), ("GROUP_BYTES", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(parquet, limit, value)
            file = io.BytesIO()
            write_answers(file, (to_json({"id": f"{i:02}", "text": "x" * 10}) for i in range(25)))
            assert pq.ParquetFile(file).num_row_groups == 3
            assert pq.read_table(file).column("id").to_pylist() == [f"{i:02}" for i in range(25)]


def test_a_field_that_the_schema_lacks_is_never_lost():
    with pytest.raises(RuntimeError, match="mood"):
        write_answers(io.BytesIO(), iter([b'{"id":"a","mood":"good"}']))
