"""Lines by position, and one clear message for each way a line can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.data.jsonl import index_jsonl, parse_object, read_texts, text_field
from pefx.errors import PefxError


def write(folder: Path, content: bytes) -> str:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return str(path)


@given(lines=st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), min_size=1), final=st.booleans())
def test_every_line_that_says_something_is_found(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], final: bool
) -> None:
    path = write(tmp_path_factory.mktemp("lines"), b"\n".join(lines) + b"\n" * final)
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not expected:
        with pytest.raises(PefxError, match="the file is empty"):
            index_jsonl(path)
        return
    file = index_jsonl(path)
    assert [(int(file.numbers[i]), file.read(i).rstrip(b"\n")) for i in range(len(file))] == expected


def test_a_file_that_changes_under_us_is_an_error(tmp_path: Path) -> None:
    file = index_jsonl(write(tmp_path, b'{"text": "a"}\n'))
    write(tmp_path, b'{"text": "something else"}\n')
    with pytest.raises(PefxError, match="changed while it was in use"):
        file.read(0)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match=r"none\.jsonl: no such file"):
        index_jsonl(str(tmp_path / "none.jsonl"))
    with pytest.raises(PefxError, match=r"cannot be read \(Is a directory\)"):
        index_jsonl(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', r"f: line 3: broken JSON: Expecting value \(column 10\)"),
        (b'{"text": "\xff"}', r"f: line 3: not UTF-8 \(byte 11\)"),
        (b"[" * 100_000, "f: line 3: broken JSON"),
        (b'{"a": 1, "a": 2}', "f: line 3: broken JSON: field 'a' is given twice"),
        (b"[1]", "f: line 3: expected a JSON object, got a list"),
        (b"null", "f: line 3: expected a JSON object, got null"),
        (b"true", "f: line 3: expected a JSON object, got true"),
    ],
)
def test_broken_lines(line: bytes, message: str) -> None:
    with pytest.raises(PefxError, match=f"^{message}") as caught:
        parse_object(line, "f: line 3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", "field 'text' is missing"),
        (b'{"text": 3}', "field 'text' must be a string, got a number"),
        (b'{"text": null}', "field 'text' must be a string, got null"),
        (b'{"text": "\\ud800"}', "field 'text' holds half of a surrogate pair"),
    ],
)
def test_wrong_fields(line: bytes, message: str) -> None:
    with pytest.raises(PefxError, match=f"^f: line 3: {message}"):
        text_field(parse_object(line, "f: line 3"), "text", "f: line 3")


def test_read_texts_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"text": "a"}\n\n{"text": "b"}\n{"other": 1}\n')
    texts = read_texts(path)
    assert [next(texts), next(texts)] == ["a", "b"]
    with pytest.raises(PefxError, match="line 4: field 'text' is missing"):
        next(texts)
