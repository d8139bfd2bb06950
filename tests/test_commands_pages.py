"""`pefx catalog web`, as a process: what it says, how it is refused, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pefx import cli
from pefx.store.catalog import Catalog
from pefx.web.server import listen
from tests.web_catalog import ask, commit

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def started(place: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command over the catalog at `place`, and the address it says."""
    command = [sys.executable, "-m", "pefx.cli", "catalog", "web", str(place), "--port", "0", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    commit(Catalog.open(tmp_path / "catalog", create=True), "a", 1)
    return tmp_path / "catalog"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_quietly(place: Path, number: signal.Signals) -> None:
    with started(place) as (process, said):
        address = said.split(" ")[0]
        assert said == f"{address} shows catalog '{place}', read-only; Ctrl-C ends it\n"
        assert ask(f"{address}/policy/a").status == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (0, "", "")


def test_it_writes_nothing(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with started(place, "--host", "localhost") as (_, said):
        for path in ("/", "/policy/a", "/revision/a@1", "/api/"):
            assert ask(said.split(" ")[0] + path).status == 200
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_what_cannot_begin_is_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = ["catalog", "web"]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listen("127.0.0.1", 0) as bound:
        for words, told in (
            ([*web, str(place), "--port", str(bound.getsockname()[1])], "is in use: choose another one with --port"),
            ([*web, str(place), "--host", "0.0.0.0"], "may be reached by others"),
            ([*web, str(tmp_path / "nothing")], "does not exist"),
            ([*web, str(place), "--port", "70000"], "--port 70000 is none"),
        ):
            assert cli.main(words) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert err.startswith("error: ")
            assert told in err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_other_commands_do_not_wait_for_a_web_server(place: Path) -> None:
    program = "import sys; from pefx import cli; cli.main(sys.argv[1:]); print('starlette' in sys.modules)"
    command = [sys.executable, "-c", program, "catalog", "ls", str(place)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("False\n")
