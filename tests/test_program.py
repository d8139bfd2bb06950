"""A module started as a program: its words are typed, its errors one line."""

import pytest

from pefx.errors import PefxError
from pefx.program import run


def main(count: int) -> None:
    if count < 0:
        raise PefxError(f"count must not be negative, got {count}")
    print(count + 1)


@pytest.mark.parametrize(("words", "code", "out", "error"), [
    (["--count", "4"], 0, "5\n", ""),
    (["--count", "-4"], 2, "", "error: count must not be negative, got -4\n"),
])  # fmt: skip
def test_it_exits_as_its_error_says(words, code, out, error, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["program", *words])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == code
    assert capsys.readouterr() == (out, error)
