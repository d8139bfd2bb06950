"""Catalogs as tar files: out and in bit for bit, gone on where they were cut, and no trust in what is in them."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pefx.store import archive
from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, give, move_stage, retag, retire
from pefx.store.sessions import Wanted, open_sessions
from tests.store_small import BASE, SPEC, bits, commit, everything, fresh, refused

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = fresh(tmp_path)
    for seed in range(3):
        commit(catalog, "ann", seed)
    commit(catalog, "ann/notes", 4)
    branch(catalog, "ann", "bob", 2)
    commit(catalog, "bob", 5)
    retag(catalog, "bob", add=("x",))
    give(catalog, "ann", "team")
    move_stage(catalog, "ann", 3, "register")
    open_sessions(catalog, "run", [Wanted("carl", BASE, SPEC)])
    commit(catalog, "gone", 6)
    retire(catalog, "gone")
    return catalog


def test_out_and_in_is_the_same(catalog: Catalog, tmp_path: Path) -> None:
    seen: list[int] = []
    assert export_tar(catalog, tmp_path / "all.tar", step=seen.append) == 5
    assert sum(seen) == 5
    other = fresh(tmp_path, "other")
    done = import_tar(other, tmp_path / "all.tar")
    assert (done.policies, done.revisions, done.there, done.refused) == (5, 7, 0, [])
    assert everything(other) == everything(catalog)
    assert audit(other).faults == []
    again = import_tar(other, tmp_path / "all.tar")
    assert (again.policies, again.there, again.refused) == (0, 5, [])
    assert everything(other) == everything(catalog)
    export_tar(other, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "all.tar").read_bytes()
    refused("invalid_input", export_tar, catalog, tmp_path / "all.tar")


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (Slice(prefix="ann"), ["ann", "ann/notes"]),
        (Slice(tag="x"), ["bob"]),
        (Slice(owner="team"), ["ann"]),
        (Slice(prefix="z"), []),
    ],
)
def test_a_slice_stands_alone(catalog: Catalog, tmp_path: Path, part: Slice, names: list[str]) -> None:
    assert export_tar(catalog, tmp_path / "part.tar", part) == len(names)
    other = fresh(tmp_path, "other")
    import_tar(other, tmp_path / "part.tar")
    assert list(other.policies()) == names
    for name in names:
        for revision in catalog.log(name):
            assert other.get(name, revision.number) == revision
            assert bits(other, revision) == bits(catalog, revision)  # of a branch, too, whose source stayed behind
    assert audit(other).faults == []


def test_cut_anywhere_an_export_goes_on(catalog: Catalog, tmp_path: Path) -> None:
    export_tar(catalog, tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    rng = random.Random(0)
    partial = tmp_path / "part.tar.partial"
    for cut in [*range(0, len(whole), 2048), *(rng.randrange(len(whole)) for _ in range(10))]:
        partial.write_bytes(whole[:cut])
        assert export_tar(catalog, tmp_path / "part.tar") == 5
        assert (tmp_path / "part.tar").read_bytes() == whole
        assert not partial.exists()
        (tmp_path / "part.tar").unlink()
    partial.write_bytes(whole)
    assert "begun with other choices" in refused(
        "invalid_input", export_tar, catalog, tmp_path / "part.tar", Slice(tag="x")
    )


def test_cut_anywhere_an_import_is_told_and_goes_on(catalog: Catalog, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archive, "TRANSACTION_BYTES", 3000)  # a policy takes several transactions
    export_tar(catalog, tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    last = whole.index(b"end.json")
    for i, cut in enumerate([*range(2048, last, 3 * 1024), last]):
        other = fresh(tmp_path, f"other-{i}")
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        assert "cut" in refused("damaged", import_tar, other, tmp_path / "cut.tar")
        for name in other.policies():  # what can be seen is whole
            assert [bits(other, r) for r in other.log(name)] == [bits(catalog, r) for r in catalog.log(name)]
        assert import_tar(other, tmp_path / "whole.tar").refused == []
        assert everything(other) == everything(catalog)
        assert audit(other).faults == []


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(member, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]


def write(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in entries:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_flipped_byte_in_any_member_lets_nothing_of_its_policy_in(catalog: Catalog, tmp_path: Path) -> None:
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="ann"))
    entries = members(tmp_path / "whole.tar")
    for at, (member, data) in list(enumerate(entries))[1:-1]:
        broken = bytearray(data)
        broken[len(broken) // 2] ^= 1
        other = Catalog.open(f"memory://flip-{at}", create=True)
        bad = write(tmp_path / "bad.tar", [*entries[:at], (member, bytes(broken)), *entries[at + 1 :]])
        refused("damaged", import_tar, other, bad)
        assert list(other.policies()) == (["ann"] if "ann/notes" in member.name else [])


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "policy/../../x@.json", "blob/x@1.safetensors", "notes.txt", "policy/a@b@.json"]
)
def test_foreign_members_are_refused(catalog: Catalog, tmp_path: Path, name: str) -> None:
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="bob"))
    entries = members(tmp_path / "whole.tar")
    bad = write(tmp_path / "bad.tar", [entries[0], (tarfile.TarInfo(name), b"{}"), *entries[1:]])
    other = fresh(tmp_path, "other")
    with pytest.raises(archive.PefxError):
        import_tar(other, bad)
    assert list(other.policies()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar", "catalog", "other", "whole.tar"]


def test_links_and_other_files_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="bob"))
    entries = members(tmp_path / "whole.tar")
    link = tarfile.TarInfo("revision/bob@0000000009.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    other = fresh(tmp_path, "other")
    refused("damaged", import_tar, other, write(tmp_path / "bad.tar", [entries[0], (link, b""), *entries[1:]]))
    (tmp_path / "text").write_text("no tar file at all\n" * 100)
    refused("damaged", import_tar, other, tmp_path / "text")
    refused("invalid_input", import_tar, other, write(tmp_path / "headless.tar", entries[1:]))
    refused("read_only", import_tar, Catalog.open(tmp_path / "other", read_only=True), tmp_path / "whole.tar")


def test_a_policy_that_is_there_otherwise_is_refused_and_the_rest_goes_in(catalog: Catalog, tmp_path: Path) -> None:
    export_tar(catalog, tmp_path / "whole.tar")
    other = fresh(tmp_path, "other")
    commit(other, "bob", 77)
    before = bits(other, other.get("bob"))
    done = import_tar(other, tmp_path / "whole.tar")
    assert (done.policies, len(done.refused)) == (4, 1)
    assert "policy 'bob'" in done.refused[0]
    assert bits(other, other.get("bob")) == before
    assert audit(other).faults == []


IMPORTER = (
    "import sys; from pefx.store.catalog import Catalog; from pefx.store import archive\n"
    "archive.TRANSACTION_BYTES = 1\ncatalog = Catalog.open(sys.argv[1], create=True); print('go', flush=True)\n"
    "archive.import_tar(catalog, sys.argv[2])"
)


def test_killed_in_the_middle_it_goes_on(catalog: Catalog, tmp_path: Path) -> None:
    for i in range(40):
        commit(catalog, f"many-{i // 4}", i)
    export_tar(catalog, tmp_path / "whole.tar")
    rng, place = random.Random(1), tmp_path / "other"
    for _ in range(4):
        command = [sys.executable, "-c", IMPORTER, str(place), str(tmp_path / "whole.tar")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
        other = Catalog.open(place)
        for name in other.policies():
            assert [bits(other, r) for r in other.log(name)] == [bits(catalog, r) for r in catalog.log(name)]
    collect(Catalog.open(place))  # takes what was cut away; the next import brings it again
    import_tar(Catalog.open(place), tmp_path / "whole.tar")
    assert everything(Catalog.open(place)) == everything(catalog)
