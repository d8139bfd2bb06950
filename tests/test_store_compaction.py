"""Compaction: the same catalog on less disk; readers and writers go on; killed, it leaves the old or the new."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pefx.store import compaction
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact, disk_bytes
from pefx.store.garbage import collect
from pefx.store.keyspace import Keyspace, Write
from pefx.store.lifecycle import retire
from tests.store_small import bits, commit, everything, fresh, refused

ROOT = Path(__file__).resolve().parents[1]


def grown(tmp_path: Path) -> Catalog:
    catalog = fresh(tmp_path)
    for seed in range(30):
        commit(catalog, f"u{seed % 10}", seed)
    for i in range(5):
        retire(catalog, f"u{i}")
    collect(catalog, timedelta(0))
    return catalog


def test_the_same_on_less_disk_and_open_ones_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "COPIED_BYTES", 5000)
    catalog = grown(tmp_path)
    reader, writer = Catalog.open(tmp_path / "catalog", read_only=True), Catalog.open(tmp_path / "catalog")
    wanted = everything(catalog)
    assert everything(reader) == wanted  # what it has in its caches is of the old files
    done = compact(catalog)
    assert done.after < done.before / 3
    assert done.after == disk_bytes(str(tmp_path / "catalog"))
    assert everything(catalog) == everything(reader) == wanted
    commit(writer, "after", 1)
    assert reader.get("after").number == 1
    assert everything(Catalog.open(tmp_path / "catalog")) == everything(reader)
    assert audit(reader).faults == []
    assert compact(catalog).after < done.before / 3


def test_beside_readers_and_writers(tmp_path: Path) -> None:
    catalog, stop = grown(tmp_path), threading.Event()
    failures: list[BaseException] = []
    expected = {name: bits(catalog, catalog.get(name)) for name in ("u5", "u6", "u7")}

    def busy(work) -> None:
        try:
            own = Catalog.open(tmp_path / "catalog")
            count = 0
            while not stop.is_set():
                work(own, count)
                count += 1
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def read(own: Catalog, count: int) -> None:
        name = f"u{5 + count % 3}"
        assert bits(own, own.get(name)) == expected[name]

    threads = [threading.Thread(target=busy, args=(work,)) for work in (read, lambda c, i: commit(c, "w", i))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            compact(catalog)
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert audit(catalog).faults == []
    assert [r.number for r in catalog.log("w")] == list(range(1, catalog.policy("w").head + 1))


def test_values_whose_file_was_taken_are_read_again(tmp_path: Path) -> None:
    """A reader that found its way to the old files before a compaction, and reads after it."""
    space = fresh(tmp_path).space
    values = {f"big-{i}": bytes([i]) * 5000 for i in range(20)}
    space.transact([*(Write(key, value) for key, value in values.items()), Write("index", b""), Write("small", b"s")])
    reader = Keyspace.open(tmp_path / "catalog", read_only=True)
    store = reader._store

    class Late:
        """Reads by way of the old files: none of them is there when a value is fetched."""

        def __init__(self) -> None:
            self.moved: list[tuple[Path, Path]] = []

        def read(self, key: str) -> Any:
            folder = tmp_path / "catalog" / "d"
            if not self.moved:
                store.read("small").result()
                self.moved = [(path, tmp_path / path.name) for path in folder.iterdir()]
                for path, away in self.moved:
                    path.rename(away)
                found = [store.read(key).result()]
                for path, away in self.moved:
                    away.rename(path)
                assert (found[0].state, found[0].value) == ("value", b"")  # else this is not needed any more
                return SimpleNamespace(result=lambda: found[0])
            return store.read(key)

    reader._store = Late()
    keys = [*values, "index", "none"]
    assert [entry.value for entry in reader.read_many(keys)] == [*values.values(), b"", None]


def test_weights_are_never_misread_beside_compactions(tmp_path: Path) -> None:
    """Caches of no use: all reads go to files that come and go."""
    catalog, stop, failures = grown(tmp_path), threading.Event(), []
    expected = {name: bits(catalog, catalog.get(name)) for name in ("u5", "u6", "u7", "u8")}

    def read() -> None:
        own = Catalog.open(tmp_path / "catalog", read_only=True, cache_bytes=0)
        while not stop.is_set():
            found = [own.get(name) for name in expected]
            try:
                assert [bits(own, revision) for revision in found] == list(expected.values())
                assert audit(own).faults == []
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        compact(catalog)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


KILLED = (
    "import sys; from pefx.store.catalog import Catalog; from pefx.store.compaction import compact\n"
    "catalog = Catalog.open(sys.argv[1]); print('open', flush=True)\nwhile True: compact(catalog)"
)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    catalog, rng = grown(tmp_path), random.Random(0)
    wanted = everything(catalog)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "catalog")]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
        assert everything(Catalog.open(tmp_path / "catalog")) == everything(catalog) == wanted
    commit(catalog, "after")
    done = compact(catalog)
    shutil.copytree(tmp_path / "catalog", tmp_path / "copy")
    assert disk_bytes(str(tmp_path / "copy")) == done.after
    assert len(os.listdir(tmp_path / "catalog" / "d")) < 10
    assert audit(catalog).faults == []


def test_what_cannot_be_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = grown(tmp_path)
    refused("read_only", compact, Catalog.open(tmp_path / "catalog", read_only=True))
    assert "no directory" in refused("invalid_input", compact, Catalog.open("memory://compact", create=True))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10))
    assert "the disk has 10 free" in refused("invalid_input", compact, catalog)
