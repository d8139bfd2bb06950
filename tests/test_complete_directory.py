"""A directory appears whole, or not at all."""

from pathlib import Path

import pytest

from pefx.complete_directory import complete_directory
from pefx.errors import PefxError


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "below" / "made"
    with complete_directory(target) as partial:
        (partial / "file").write_text("x")
        assert not target.exists()
        assert partial.parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["made"]
    assert (target / "file").read_text() == "x"


@pytest.mark.parametrize("failure", [ValueError("a mistake"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def fail() -> None:
        with complete_directory(tmp_path / "made") as partial:
            (partial / "file").write_text("x")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(PefxError, match="made: is there already") as caught, complete_directory(tmp_path / "made"):
        pass
    assert caught.value.kind == "conflict"


def test_a_disk_that_refuses_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(PefxError, match="cannot be written") as caught, complete_directory(tmp_path / "file" / "made"):
        pass
    assert caught.value.kind == "storage"
