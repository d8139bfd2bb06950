"""pefx.serving.formats: either kind of file gives the same, or clear words."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pefx.errors import PefxError
from pefx.serving.formats import read_fingerprint, read_requests, write_answers, writer_version
from pefx.serving.requests import Request


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "é", "seed": 3}]
    lines, table = tmp_path / "in.jsonl", tmp_path / "in.parquet"
    lines.write_text("\n" + "\n\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist([{"seed": None, **row} for row in rows]), table)
    return lines, table


def test_either_file_gives_the_requests(files: tuple[Path, Path]):
    lines, table = files
    wanted = [Request("a", "x"), Request("b", "é", seed=3)]
    assert list(read_requests(lines)) == [(2, "in.jsonl line 2", wanted[0]), (4, "in.jsonl line 4", wanted[1])]
    assert list(read_requests(table)) == [(1, "in.parquet row 1", wanted[0]), (2, "in.parquet row 2", wanted[1])]


def test_fingerprint_names_the_bytes(files: tuple[Path, Path]):
    for path in files:
        found = read_fingerprint(path)
        assert (found["requests"], found["bytes"]) == (2, path.stat().st_size)
        assert len(found["sha256"]) == 64
    lines, _ = files
    before = read_fingerprint(lines)["sha256"]
    lines.write_bytes(lines.read_bytes() + b" ")
    assert read_fingerprint(lines)["sha256"] != before


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_file_without_requests_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(PefxError, match="holds no request, expected one JSON object on each line"):
        read_fingerprint(tmp_path / "in.jsonl")
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), tmp_path / "in.parquet")
    with pytest.raises(PefxError, match="holds no request, expected one on each row"):
        read_fingerprint(tmp_path / "in.parquet")
    for name in ("missing.jsonl", "missing.parquet"):
        with pytest.raises(PefxError, match="cannot read the requests"):
            read_fingerprint(tmp_path / name)


def test_answers_are_written_as_the_name_says():
    lines, table = io.BytesIO(), io.BytesIO()
    answers = [b'{"id":"a","text":"x"}', b'{"id":"b","text":"y"}']
    write_answers(Path("out.jsonl"), lines, iter(answers))
    write_answers(Path("out.parquet"), table, iter(answers))
    assert lines.getvalue().splitlines() == answers
    assert pq.read_table(table).column("text").to_pylist() == ["x", "y"]


def test_version_of_the_writer_decides_the_bytes():
    assert writer_version(Path("out.parquet")) == {"pyarrow": pa.__version__}
    assert writer_version(Path("out.jsonl")) == {}
