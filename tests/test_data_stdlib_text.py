"""The corpora made from the running Python: what the base may see, what the users get, and that it repeats."""

import json
import random
import string
from pathlib import Path

import pytest

from pefx.data import stdlib_text
from pefx.data.stdlib_text import Document, build, is_generated, split_user, user_of
from pefx.errors import PefxError


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    build(out, users_only=True)
    return out


def code(seed: int, functions: int) -> str:
    """Functions with names that differ, so that the text does not pass for a table."""
    words = random.Random(seed)
    names = ["".join(words.choices(string.ascii_lowercase, k=8)) for _ in range(functions)]
    return "\n".join(f"def {name}():\n    return '{name[::-1]}'\n" for name in names)


def make_library(root: Path) -> Path:
    """A small library: eight packages of three files, base modules, tests of a package, files to be skipped."""
    for number, name in enumerate(stdlib_text.USERS):
        (root / name).mkdir(parents=True)
        for index in range(3):
            (root / name / f"part{index}.py").write_text(code(3 * number + index, 600))
    prose = code(-1, 20)
    (root / "os.py").write_text(prose + "\n# os")
    (root / "copy.py").write_text(prose + "\n# copy")
    (root / "same.py").write_text(prose + "\n\n# copy")
    (root / "latin.py").write_bytes(prose.encode() + b"\n# caf\xe9")
    (root / "_sysconfigdata_x.py").write_text(prose)
    for folder in ("test", "site-packages", "pydoc_data"):
        (root / folder).mkdir()
    (root / "test" / "test_logging.py").write_text(prose + "\n# a test of a user")
    (root / "test" / "test_copy.py").write_text(prose + "\n# a test of the base")
    (root / "site-packages" / "other.py").write_text(prose + "\n# not the library")
    (root / "pydoc_data" / "topics.py").write_text("topics = {'if': 'The if statement.', 'for': 'The for statement.'}")
    return root


def test_every_user_has_train_and_heldout_text(users: Path) -> None:
    assert sorted(path.name for path in (users / "users").iterdir()) == sorted(stdlib_text.USERS)
    for name in stdlib_text.USERS:
        train, heldout = (texts(users / "users" / name / f"{part}.jsonl") for part in ("train", "heldout"))
        assert sum(map(len, train)) >= 50_000
        assert 8_000 <= sum(map(len, heldout)) <= 0.3 * sum(map(len, train))
        assert not set(train) & set(heldout)


def test_the_same_python_gives_the_same_bytes(users: Path, tmp_path: Path) -> None:
    sizes = build(tmp_path, users_only=True)
    for name, size in sizes.items():
        assert (tmp_path / name).read_bytes() == (users / name).read_bytes()
        assert size == sum(len(text.encode()) for text in texts(tmp_path / name))


def test_the_base_sees_neither_users_nor_their_tests_nor_other_peoples_code(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    build(tmp_path / "out", library)
    base = texts(tmp_path / "out" / "base_train.jsonl") + texts(tmp_path / "out" / "base_heldout.jsonl")
    endings = sorted(text.splitlines()[-1] for text in base)
    assert endings == ["# a test of the base", "# copy", "# os", "The for statement.", "The if statement."]


def test_whole_library_keeps_train_and_heldout_apart(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    for index in range(200):
        (library / f"module{index}.py").write_text(code(100 + index, 20))
    build(tmp_path / "out", library)
    train, heldout = (texts(tmp_path / "out" / f"base_{part}.jsonl") for part in ("train", "heldout"))
    assert heldout
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == 205


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("asyncio/events.py", "asyncio"),
        ("test/test_asyncio/test_events.py", "asyncio"),
        ("test/_test_multiprocessing.py", "multiprocessing"),
        ("test/test_minidom.py", "xml"),
        ("test/test_copy.py", None),
        ("copy.py", None),
        ("http_like.py", None),
    ],
)
def test_user_of(path: str, user: str | None) -> None:
    assert user_of(path) == user


def test_few_files_are_split_in_parts_and_nothing_is_lost() -> None:
    documents = [Document(f"p/{index}.py", "".join(f"line {line}\n" for line in range(5000))) for index in range(3)]
    train, heldout = split_user(documents)
    assert [a.text + b.text for a, b in zip(train, heldout, strict=True)] == [d.text for d in documents]
    assert all(document.text.endswith("\n") for document in train)


def test_many_files_are_split_whole() -> None:
    documents = [Document(f"p/{index}.py", "x = 1\n" * 2000) for index in range(40)]
    train, heldout = split_user(documents)
    assert sorted(d.path for d in train + heldout) == sorted(d.path for d in documents)
    assert 12_000 <= sum(len(d.text) for d in heldout) <= 0.25 * 40 * 12_000


def test_tables_are_no_text() -> None:
    assert is_generated("table.py", "\n".join(f"    {n}, {n + 1}, {n + 2}," for n in range(1000, 2000)))
    assert is_generated("cp437.py", "x" * 300 + "\ndecoding_table = (\n")
    assert not is_generated("copy.py", Path(stdlib_text.__file__).read_text(encoding="utf-8"))


def test_no_library_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match=r"os\.py is missing"):
        build(tmp_path / "out", tmp_path)


def test_a_python_without_a_package_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    for path in (library / "xml").iterdir():
        path.unlink()
    with pytest.raises(PefxError, match="lacks the package xml"):
        build(tmp_path / "out", library)
    assert not (tmp_path / "out").exists()
