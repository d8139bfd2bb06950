"""Programs that run cases, each in an environment of its own, driven over a pipe."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from benchmarks.mixed.comparisons import PEFX
from pefx.errors import PefxError

PEERS = Path(__file__).parent.parent / "peers"


@runtime_checkable
class Entry(Protocol):
    """What is asked of an entry: whose program runs it, what it measures (a dataclass), and its name for people."""

    @property
    def peer(self) -> str: ...

    @property
    def case(self) -> Any: ...

    @property
    def name(self) -> str: ...


def python_of(peer: str, builds: Path) -> Path:
    """The interpreter of a peer's environment under `builds`, made when it is missing or its requirements changed."""
    if peer == PEFX:
        return Path(sys.executable)
    wanted = PEERS / f"requirements-{peer}.txt"
    home = builds / peer
    python, mark = home / "bin" / "python", home / "requirements.sha256"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return python
    shutil.rmtree(home, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--python", "3.11", str(home)],
        [*uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(wanted)],
    ):
        if subprocess.run(command, check=False).returncode:
            raise PefxError(f"no environment for the peer {peer!r}: '{' '.join(command)}' failed")
    mark.write_text(digest)
    return python


class Worker:
    """One entry's program, with its case prepared and warm. Raises PefxError where it fails."""

    def __init__(self, entry: Entry, python: Path, model: Path, log: IO[str]):
        self.entry = entry
        self._process = subprocess.Popen(
            [str(python), str(PEERS / f"{entry.peer}_worker.py"), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Others must not find this checkout's packages: one of theirs may have the same name.
            env={**os.environ, "PYTHONPATH": str(PEERS.parents[1])} if entry.peer == PEFX else None,
        )

    def prepare(self) -> None:
        self._ask({"op": "prepare", "case": vars(self.entry.case)})

    def run(self) -> float:
        """Tokens/s of one repetition."""
        answer = self._ask({"op": "run"})
        return answer["tokens"] / answer["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        ask, answers = self._process.stdin, self._process.stdout
        assert ask is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):
            ask.write(json.dumps(command) + "\n")
            ask.flush()
        line = answers.readline()
        answer = json.loads(line) if line else {"error": f"the program ended with {self._process.wait()}"}
        if "error" in answer:
            raise PefxError(f"{self.entry.name}: {answer['error']}")
        return answer


@contextlib.contextmanager
def workers(entries: Sequence[Entry], pythons: dict[str, Path], model: Path, logs: Path) -> Iterator[list[Worker]]:
    """A program for each entry, prepared one after another; what they print goes to a file for each peer in `logs`."""
    with contextlib.ExitStack() as stack:
        started = []
        for entry in entries:
            log = stack.enter_context((logs / f"{entry.peer}.log").open("a"))
            worker = Worker(entry, pythons[entry.peer], model, log)
            stack.callback(worker.close)
            worker.prepare()
            started.append(worker)
        yield started
