"""Text every machine with Python has: the standard library, as a base corpus and eight users the base never sees.

`python -m pefx.data.stdlib_text --out DIR` writes, from the interpreter that runs it, `base_train.jsonl`,
`base_heldout.jsonl` and `users/<package>/{train,heldout}.jsonl`, one `{"text": ...}` line a file (or part of one).
"""

import ast
import hashlib
import json
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pefx.errors import PefxError
from pefx.program import run

# Packages present in every CPython 3.11 to 3.14, also where tkinter, idlelib and test are packaged apart. The words
# are what their tests are called: neither a package nor its tests may reach the base.
USERS: dict[str, tuple[str, ...]] = {
    "asyncio": ("asyncio",),
    "email": ("email",),
    "http": ("http", "httplib", "cookie", "cookies"),
    "importlib": ("importlib", "import"),
    "logging": ("logging",),
    "multiprocessing": ("multiprocessing",),
    "unittest": ("unittest", "mock"),
    "xml": ("xml", "minidom", "sax", "pyexpat", "pulldom", "xmltestdata", "elementtree"),
}
BASE_HELDOUT_PERCENT = 3
USER_HELDOUT_PERCENT = 12
USER_HELDOUT_BYTES = 12_000
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled", "bad_coding", "crashers"}
PLAIN_SUFFIXES = {".txt", ".rst"}


@dataclass(frozen=True)
class Document:
    """One text and its path relative to the library, with `/` between folders."""

    path: str
    text: str


def build(out: Path, library: Path | None = None, users_only: bool = False) -> dict[str, int]:
    """Writes the corpora under `out`; returns the bytes of text of each file written, by its relative path.

    `library` is the folder that holds `os.py` (default: the running interpreter's). `users_only` reads and writes the
    eight packages alone. Raises PefxError if `library` is none, or lacks one of the packages in `USERS`.
    """
    library = Path(library or sysconfig.get_path("stdlib"))
    if not (library / "os.py").is_file():
        raise PefxError(f"{library}: no standard library sources here (os.py is missing); give --library")
    documents = list(deduplicate(read_library(library, tuple(USERS) if users_only else (".",))))
    files: dict[str, list[Document]] = {}
    if not users_only:
        base = [d for d in documents if user_of(d.path) is None]
        files["base_train.jsonl"] = [d for d in base if not held_out(d.path)]
        files["base_heldout.jsonl"] = [d for d in base if held_out(d.path)]
    for name in USERS:
        own = [d for d in documents if d.path.split("/")[0] == name and not is_test(d.path)]
        if sum(len(d.text) for d in own) < 5 * USER_HELDOUT_BYTES:
            raise PefxError(f"{library / name}: too little source for a user; this Python lacks the package {name}")
        train, heldout = split_user(own)
        files[f"users/{name}/train.jsonl"] = train
        files[f"users/{name}/heldout.jsonl"] = heldout
    return {name: write_jsonl(out / name, documents) for name, documents in files.items()}


def read_library(library: Path, folders: tuple[str, ...] = (".",)) -> Iterator[Document]:
    """The documents of `folders` in path order; the topics of pydoc one by one; generated and non-UTF-8 left out."""
    paths = [path for folder in folders for path in (library / folder).rglob("*")]
    for path in sorted(paths, key=lambda path: path.relative_to(library).as_posix()):
        relative = path.relative_to(library)
        plain = path.suffix in PLAIN_SUFFIXES and "test" not in relative.parts and "tests" not in relative.parts
        if not (path.suffix == ".py" or plain) or SKIPPED_FOLDERS & set(relative.parts) or not path.is_file():
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        text = text.replace("\r\n", "\n")
        if relative.as_posix() == "pydoc_data/topics.py":
            yield from pydoc_topics(text)
        elif not is_generated(relative.name, text):
            yield Document(relative.as_posix(), text)


def pydoc_topics(source: str) -> Iterator[Document]:
    """The language reference as `help()` shows it: the values of the one dict literal in the module."""
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(statement.value).items()):
                yield Document(f"pydoc_data/topics/{name}", text)


def is_generated(name: str, text: str) -> bool:
    """Tables, not prose or code: code pages, character data, build settings; also texts too short to teach anything."""
    if len(text) < 200 or name.startswith("_sysconfigdata") or "\ndecoding_table" in text:
        return True
    marks = len(text) - sum(map(text.count, " \t\n"))
    digits = sum(map(text.count, "0123456789"))
    compressed = len(zlib.compress(text.encode(), 1))
    return digits > 0.2 * marks or compressed < 0.1 * len(text) or len(text) > 200 * (text.count("\n") + 1)


def deduplicate(documents: Iterable[Document]) -> Iterator[Document]:
    """The first document of each text, blanks aside."""
    seen: set[bytes] = set()
    for document in documents:
        key = hashlib.sha256(" ".join(document.text.split()).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield document


def is_test(path: str) -> bool:
    """Whether `path` lies in a test folder or is a test module."""
    return any(part in ("test", "tests") or part.startswith(("test_", "_test")) for part in path.split("/"))


def user_of(path: str) -> str | None:
    """The user a path belongs to or tests, or None: then it may be in the base's corpus."""
    first = path.split("/")[0]
    if first in USERS:
        return first
    if is_test(path):
        words = set(re.split(r"[_/.]", path))
        for name, tests in USERS.items():
            if any(word.startswith(test) for word in words for test in tests):
                return name
    return None


def path_hash(path: str) -> int:
    """A number drawn from the path alone, so that a file stays on its side from one Python to the next."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def held_out(path: str) -> bool:
    """Whether a base document is in the held-out file."""
    return path_hash(path) % 100 < BASE_HELDOUT_PERCENT


def split_user(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, heldout) of one user: whole files where there are many, the last part of every file where there are few.

    Files are held out in hash order until enough text is; one that would take more than twice the share stays in train.
    """
    total = sum(len(d.text) for d in documents)
    wanted = max(USER_HELDOUT_BYTES, total * USER_HELDOUT_PERCENT // 100)
    if len(documents) < 16:
        parts = [split_lines(d, 1 - wanted / total) for d in documents]
        return [first for first, _ in parts], [second for _, second in parts if second.text.strip()]
    chosen: set[str] = set()
    size = 0
    for document in sorted(documents, key=lambda d: path_hash(d.path)):
        if size < wanted and size + len(document.text) <= 2 * wanted:
            chosen.add(document.path)
            size += len(document.text)
    return [d for d in documents if d.path not in chosen], [d for d in documents if d.path in chosen]


def split_lines(document: Document, fraction: float) -> tuple[Document, Document]:
    """Cuts a document at the first line end after `fraction` of it."""
    cut = document.text.find("\n", int(len(document.text) * fraction)) + 1 or len(document.text)
    return Document(document.path, document.text[:cut]), Document(document.path, document.text[cut:])


def write_jsonl(path: Path, documents: list[Document]) -> int:
    """Writes `{"text": ...}` lines, whole or not at all; returns the bytes of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
    partial.replace(path)
    return sum(len(document.text.encode()) for document in documents)


def main(out: Path, library: Path | None = None, users_only: bool = False) -> None:
    """Writes the standard-library corpora under OUT.

    Args:
        out: folder to write to.
        library: folder of the library's sources; the running interpreter's if not given.
        users_only: write the eight users alone (seconds less).
    """
    for name, size in build(out, library, users_only).items():
        print(f"{size:>12,} bytes  {out / name}")


if __name__ == "__main__":
    run(main)
