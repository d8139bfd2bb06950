"""The key space: atomic conditional writes, telling a catalog from nothing, and failures in our words."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.store import keyspace
from pefx.store.keyspace import CONFIG, MARKER_KEY, Entry, Keyspace, Write

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def space(tmp_path: Path) -> Keyspace:
    return Keyspace.open(tmp_path / "catalog", create=True)


def kind_of(call, *args, **kwargs) -> tuple[str, str]:
    with pytest.raises(PefxError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value.kind, str(caught.value)


def test_writes_are_seen_by_another_opening(space: Keyspace, tmp_path: Path) -> None:
    reader = Keyspace.open(tmp_path / "catalog", read_only=True)
    assert reader.read("a").value is None
    space.transact([Write("a", b"1"), Write("b", b"2" * 5000)])
    assert reader.read("a").value == b"1"
    assert [entry.value for entry in reader.read_many(["b", "c"])] == [b"2" * 5000, None]
    assert reader.keys("a", "c") == ["a", "b"]
    assert reader.keys("b", "z") == ["b", MARKER_KEY]


def test_one_failed_condition_stops_all_writes(space: Keyspace) -> None:
    absent = space.read("head").generation
    space.transact([Write("head", b"1", absent)])
    kind, told = kind_of(space.transact, [Write("blob", b"x" * 5000), Write("head", b"2", absent)])
    assert kind == "conflict"
    assert "try again" in told
    assert space.read("head").value == b"1"
    assert space.read("blob").value is None
    space.transact([Write("blob", b"x" * 5000), Write("head", b"2", space.read("head").generation)])
    assert space.read("head").value == b"2"


def test_read_only_refuses_and_writes_nothing(space: Keyspace, tmp_path: Path) -> None:
    reader = Keyspace.open(tmp_path / "catalog", read_only=True)
    kind, told = kind_of(reader.transact, [Write("a", b"1")])
    assert (kind, "read-only" in told) == ("read_only", True)
    assert space.read("a").value is None


def test_absent_is_told_and_not_made(tmp_path: Path) -> None:
    for flags in ({}, {"read_only": True}):
        kind, told = kind_of(Keyspace.open, tmp_path / "none" / "catalog", **flags)
        assert kind == "no_catalog"
        assert str(tmp_path / "none" / "catalog") in told
    assert list(tmp_path.iterdir()) == []
    assert kind_of(Keyspace.open, tmp_path / "x", create=True, read_only=True)[0] == "invalid_input"


def test_what_is_gone_is_told_from_what_is_empty(space: Keyspace, tmp_path: Path) -> None:
    space.transact([Write("a", b"1")])
    reader = Keyspace.open(tmp_path / "catalog", read_only=True)
    reader.check_present()
    (tmp_path / "catalog").rename(tmp_path / "away")
    assert reader.read("a").value is None
    assert kind_of(reader.check_present)[0] == "no_catalog"
    (tmp_path / "away").rename(tmp_path / "catalog")
    reader.check_present()
    assert reader.read("a").value == b"1"


def test_what_is_no_catalog_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    below, folder = file / "catalog", tmp_path
    for place in (file, folder):
        for create in (False, True):
            assert kind_of(Keyspace.open, place, create=create)[0] == "no_catalog"
    assert kind_of(Keyspace.open, below)[0] == "no_catalog"
    assert kind_of(Keyspace.open, below, create=True)[0] == "storage"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert file.read_text() == "mine"


def test_foreign_ocdbt_database_is_no_catalog(tmp_path: Path) -> None:
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/db/"}).result()
    store.write("x", b"1").result()
    assert kind_of(Keyspace.open, tmp_path / "db")[0] == "no_catalog"
    kind, told = kind_of(Keyspace.open, tmp_path / "db", create=True)
    assert (kind, "another OCDBT database is there ('x')" in told) == ("no_catalog", True)
    store.write(MARKER_KEY, b'{"format":"pefx-catalog","schema":2}').result()
    kind, told = kind_of(Keyspace.open, tmp_path / "db")
    assert kind == "schema"
    assert '"schema":2' in told


def test_creating_twice_opens(space: Keyspace, tmp_path: Path) -> None:
    space.transact([Write("a", b"1")])
    assert Keyspace.open(tmp_path / "catalog", create=True).read("a").value == b"1"


def test_a_creation_killed_before_its_marker_is_taken_up(tmp_path: Path) -> None:
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/cut/", "config": CONFIG}).result()
    store.write("x", b"1").result()
    store.delete_range(ts.KvStore.KeyRange("", "")).result()
    assert kind_of(Keyspace.open, tmp_path / "cut")[0] == "no_catalog"
    Keyspace.open(tmp_path / "cut", create=True).transact([Write("a", b"1")])
    assert Keyspace.open(tmp_path / "cut").read("a").value == b"1"


@pytest.mark.parametrize("moment", ["keys", "transact"])
def test_two_creators_make_one_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    place, original = tmp_path / "catalog", getattr(Keyspace, moment)

    def rival_first(self: Keyspace, *args: Any) -> Any:
        monkeypatch.undo()
        Keyspace.open(place, create=True).transact([Write("a", b"1")])
        return original(self, *args)

    monkeypatch.setattr(Keyspace, moment, rival_first)
    assert Keyspace.open(place, create=True).read("a").value == b"1"


def test_nodes_are_small(space: Keyspace) -> None:
    assert space._store.spec().to_json()["config"]["max_decoded_node_bytes"] == 65536


def test_memory_and_url_places(tmp_path: Path) -> None:
    space = Keyspace.open("memory://catalog", create=True)
    space.transact([Write("a", b"1")])
    assert space.read("a").value == b"1"
    Keyspace.open(f"file://{tmp_path}/by-url", create=True).transact([Write("a", b"1")])
    assert Keyspace.open(tmp_path / "by-url").read("a").value == b"1"


def test_odd_directory_names(tmp_path: Path) -> None:
    place = tmp_path / "a b%20#ü"
    Keyspace.open(place, create=True)
    assert Keyspace.open(place).read("x") == Entry(None, Keyspace.open(place).read("x").generation)


def test_damaged_manifest_is_told(space: Keyspace, tmp_path: Path) -> None:
    manifest = tmp_path / "catalog" / "manifest.ocdbt"
    good = manifest.read_bytes()
    for position in range(len(good)):
        manifest.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        assert kind_of(Keyspace.open, tmp_path / "catalog")[0] == "damaged"
    manifest.write_bytes(b"")
    assert kind_of(Keyspace.open, tmp_path / "catalog")[0] == "damaged"


WITHOUT_RIGHTS = """
import os, sys
from pefx.errors import PefxError
from pefx.store.keyspace import Keyspace, Write
place, parent = sys.argv[1:]
if os.geteuid() == 0:  # root may write anywhere: become nobody
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
def kind(call):
    try:
        call()
    except PefxError as error:
        print(error.kind, "|", error)
    else:
        print("allowed")
kind(lambda: Keyspace.open(place))
kind(lambda: Keyspace.open(place, create=True))
kind(lambda: Keyspace.open(parent + "/new", create=True))
reader = Keyspace.open(place, read_only=True)
print(reader.read("a").value)
reader.read_only = False
kind(lambda: reader.transact([Write("a", b"2")]))
os.umask(0)
kind(lambda: Keyspace.open(parent + "/closed"))
"""


def test_directories_without_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, whose parents only the owner may enter
        parent = Path(folder)
        Keyspace.open(parent / "catalog", create=True).transact([Write("a", b"1" * 200)])
        closed = parent / "closed"
        Keyspace.open(closed, create=True)
        files = [path for path in sorted(parent.rglob("*")) if closed not in path.parents]
        before = {path: path.read_bytes() for path in files if path.is_file()}
        for path in [*reversed(files), parent]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        closed.chmod(0)
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_RIGHTS, str(parent / "catalog"), str(parent)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=60,
        )
        for path in [parent, closed, *files]:
            path.chmod(0o755)
        told = done.stdout.splitlines()
        assert [line.split(" | ")[0] for line in told] == [
            "read_only",
            "read_only",
            "read_only",
            repr(b"1" * 200),
            "read_only",
            "no_permission",
        ], done.stdout + done.stderr
        assert {path: path.read_bytes() for path in files if path.is_file()} == before
        assert sorted(path.name for path in parent.iterdir()) == ["catalog", "closed"]


@given(
    names=st.sets(st.text("abc/", min_size=1, max_size=4), max_size=60),
    asked=st.lists(st.tuples(st.text("abc/", max_size=3), st.integers(1, 9)), min_size=1, max_size=6),
    later=st.sets(st.text("abc/", min_size=1, max_size=4), max_size=60),
)
@settings(max_examples=40)
def test_pages_are_slices_of_all_keys(names: set[str], asked: list[tuple[str, int]], later: set[str]) -> None:
    """Whatever was asked before, and whatever has come since places to stop were remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyspace, "PAGE", 3)
        patch.setattr(keyspace, "RANGES", 2)
        space = Keyspace.open("memory://pages", create=True)
        there: list[str] = []
        for some in (names, later):
            space.transact([Write(f"k/{name}", b"") for name in some])
            there = sorted({*there, *(f"k/{name}" for name in some)})
            for start, limit in asked:
                for end in ("k/c", "k0"):
                    wanted = [key for key in there if f"k/{start}" <= key < end]
                    assert space.page(f"k/{start}", end, limit) == wanted[:limit]
                    pages = list(space.pages(f"k/{start}", end, limit))
                    assert [key for page in pages for key in page] == wanted
                    assert all(0 < len(page) <= limit for page in pages)


def test_keys_that_come_and_go_while_pages_are_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyspace, "PAGE", 4)
    space = Keyspace.open(tmp_path / "catalog", create=True)
    rival = Keyspace.open(tmp_path / "catalog")
    stay = [f"k/{i:03}" for i in range(0, 100, 2)]
    go = [f"k/{i:03}a" for i in range(0, 100, 10)]
    space.transact([Write(key, b"") for key in (*stay, *go)])
    seen: list[str] = []
    for turn, page in enumerate(space.pages("k/", "k0", 7)):
        seen += page
        rival.transact([Write(f"k/{i:03}", b"") for i in range(turn * 12 + 1, turn * 12 + 13, 2)])
        rival.transact([Write(key, None) for key in go])
    assert seen == sorted(set(seen))  # each once, in order
    assert set(stay) <= set(seen)
    assert {key for key in seen if key in go} == {"k/000a"}  # of the first page
    assert len(space.keys("k/", "k0")) > len(stay)
