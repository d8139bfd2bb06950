"""The write lock: one holder at a time, free when the holder dies, and what a dead writer left is made harmless."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pefx.store.keyspace import Keyspace, Write
from pefx.store.sole_writer import QUEUE, UNFINISHED, sole_writer

ROOT = Path(__file__).resolve().parents[1]


def free(folder: Path) -> bool:
    """Whether nobody holds the write lock."""
    with (folder / QUEUE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_remains_of_a_killed_writer_do_not_reach_the_manifest(tmp_path: Path) -> None:
    space = Keyspace.open(tmp_path / "catalog", create=True)
    for longer in (1, 100, 100_000):
        manifest = tmp_path / "catalog" / "manifest.ocdbt"
        (tmp_path / "catalog" / UNFINISHED).write_bytes(b"z" * (manifest.stat().st_size + longer))
        space.transact([Write(f"key{longer}", b"1")])
        assert Keyspace.open(tmp_path / "catalog", read_only=True).read(f"key{longer}").value == b"1"


def test_a_first_writer_killed_leaves_a_place_for_a_catalog(tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    for name in (UNFINISHED, QUEUE):
        (tmp_path / "catalog" / name).write_bytes(b"z" * 5000)
    Keyspace.open(tmp_path / "catalog", create=True).transact([Write("a", b"1")])
    assert Keyspace.open(tmp_path / "catalog").read("a").value == b"1"


def test_one_at_a_time_and_free_after_errors(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        with sole_writer(str(tmp_path)):
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert free(tmp_path)
    with pytest.raises(ZeroDivisionError), sole_writer(str(tmp_path)):
        assert 1 / free(tmp_path)
    assert free(tmp_path)


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pefx.store.sole_writer import sole_writer\n"
        "with sole_writer(sys.argv[1]):\n    print('in', flush=True)\n    time.sleep(600)\n"
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        assert not free(tmp_path)
        holder.kill()
    assert free(tmp_path)


def test_a_live_writer_is_waited_for_and_its_manifest_left_alone(tmp_path: Path) -> None:
    unfinished, manifest = tmp_path / UNFINISHED, tmp_path / "manifest.ocdbt"
    # another process, as this kind of lock does not exclude its own
    program = (
        "import fcntl, os, sys\nfile = open(sys.argv[1], 'wb')\nfile.write(b'whole'), file.flush()\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\nprint('locked', flush=True)\nsys.stdin.readline()\n"
        "os.rename(sys.argv[1], sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(unfinished), str(manifest)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as live:
        assert live.stdin is not None
        assert live.stdout is not None
        live.stdout.readline()
        entered = threading.Event()

        def enter() -> None:
            with sole_writer(str(tmp_path)):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.1)
        live.stdin.write(b"go\n")
        live.stdin.flush()
        thread.join(timeout=30)
        assert entered.is_set()
    assert manifest.read_bytes() == b"whole"
