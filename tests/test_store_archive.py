"""Catalogs as tar files: out and in bit for bit, gone on where they were cut, and no trust in what is in them."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.store import archive
from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.encoding import encode
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, give, move_stage, retag, retire
from pefx.store.records import Stage
from pefx.store.sessions import Wanted, open_sessions
from tests.store_small import BASE, OTHER_BASE, SPEC, bits, commit, everything, fresh, refused

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
    with pytest.raises(PefxError):
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


def test_a_flipped_bit_anywhere_in_the_file_is_told_or_harmless(catalog: Catalog, tmp_path: Path) -> None:
    export_tar(catalog, tmp_path / "whole.tar")
    whole, rng, told = (tmp_path / "whole.tar").read_bytes(), random.Random(2), 0
    wanted = {name: [bits(catalog, r) for r in catalog.log(name)] for name in catalog.policies()}
    kinds: set[str] = set()
    for i in range(60):
        broken = bytearray(whole)
        at = rng.randrange(0, len(whole), 512) + rng.randrange(160) if i % 2 else rng.randrange(len(whole))
        broken[min(at, len(whole) - 1)] ^= 1 << rng.randrange(8)
        (tmp_path / "bad.tar").write_bytes(broken)
        other = Catalog.open(f"memory://bit-{i}", create=True)
        try:
            done = import_tar(other, tmp_path / "bad.tar")
        except PefxError as error:
            kinds.add(error.kind)
            told += 1
        else:
            assert done.refused == []
            assert everything(other) == everything(catalog)
        for name in other.policies():
            assert [bits(other, r) for r in other.log(name)] == wanted[name]
        assert audit(other).faults == []
    assert told > 30
    assert kinds <= {"damaged", "invalid_input", "schema", "bad_name"}


Entries = list[tuple[tarfile.TarInfo, bytes]]


def without(part: str) -> Callable[[Catalog, Entries], Entries]:
    return lambda catalog, entries: [entry for entry in entries if part not in entry[0].name]


def otherwise(**changes: Any) -> Callable[[Catalog, Entries], Entries]:
    """The policy `ann` with other fields, under a checksum of its own."""

    def change(catalog: Catalog, entries: Entries) -> Entries:
        record = encode(replace(catalog.policy("ann"), **changes))
        return [(member, record if member.name == "policy/ann@.json" else data) for member, data in entries]

    return change


NOT_WHOLE: dict[str, tuple[Callable[[Catalog, Entries], Entries], str]] = {
    "no head": (without("ann@0000000003"), "revision 3, which is missing"),
    "no revisions": (without("ann@00"), "revision 3, which is missing"),
    "a head of other content": (otherwise(head_hash="sha256:00"), "its head has content hash"),
    "a head further on": (otherwise(head=5), "its head is revision 5, which is missing"),
    "a head further back": (otherwise(head=2, aliases={"latest": 2}), "its head has content hash"),
    "an alias of nothing": (otherwise(aliases={"latest": 3, "prod": 9}), "alias 'prod' is revision 9"),
    "another base": (otherwise(base=OTHER_BASE), "another base or adapter spec"),
    "another spec": (otherwise(spec=replace(SPEC, alpha=1.0)), "another base or adapter spec"),
}


@pytest.mark.parametrize("transaction", [1, 1 << 20])
@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_policy_that_is_not_whole_is_refused_and_the_rest_goes_in(
    catalog: Catalog, tmp_path: Path, monkeypatch, case: str, transaction: int
) -> None:
    monkeypatch.setattr(archive, "TRANSACTION_BYTES", transaction)
    change, told = NOT_WHOLE[case]
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="ann"))
    other = fresh(tmp_path, "other")
    bad = write(tmp_path / "bad.tar", change(catalog, members(tmp_path / "whole.tar")))
    done = import_tar(other, bad)
    assert [told in line and "'ann'" in line for line in done.refused] == [True]
    assert list(other.policies()) == ["ann/notes"]
    collect(other)  # what was written before it was known
    assert audit(other).faults == []
    assert "ann@" not in " ".join(everything(other))
    assert import_tar(other, tmp_path / "whole.tar").policies == 1
    assert everything(other) == {key: value for key, value in everything(catalog).items() if key in everything(other)}


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": ("a@b",)},
        {"owner": "a/b"},
        {"aliases": {"latest": 3, "7": 1}},
        {"origin": "bob"},
        {"origin": "bob@x@1"},
        {"expires": "soon"},
    ],
)
def test_labels_that_nobody_can_give_are_refused(catalog: Catalog, tmp_path: Path, changes: dict[str, Any]) -> None:
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="ann"))
    other = fresh(tmp_path, "other")
    bad = write(tmp_path / "bad.tar", otherwise(**changes)(catalog, members(tmp_path / "whole.tar")))
    with pytest.raises(PefxError):
        import_tar(other, bad)
    assert list(everything(other)) == ["catalog"]


def test_records_of_another_policy_do_not_slip_in(catalog: Catalog, tmp_path: Path) -> None:
    """They would change a policy that is there: retire its revisions, or stand above its head."""
    export_tar(catalog, tmp_path / "whole.tar", Slice(prefix="ann"))
    entries = members(tmp_path / "whole.tar")
    other = fresh(tmp_path, "other")
    commit(other, "bob", 1)
    before = everything(other)
    stage = encode(Stage("bob", 1, "retired", other.policy("bob").created))
    strange = (tarfile.TarInfo("stage/bob@0000000001.json"), stage)
    told = []
    for at in range(1, len(entries) - 1):
        told.append(
            refused("damaged", import_tar, other, write(tmp_path / "bad.tar", [*entries[:at], strange, *entries[at:]]))
        )
        assert other.serving("bob").number == 1
        assert audit(other).faults == []
    assert all("lies among the records" in line for line in told)
    assert everything(other).items() >= before.items()


def test_weights_in_the_way_refuse_one_policy_only(catalog: Catalog, tmp_path: Path) -> None:
    """`bob` was branched from `ann`, whose name is another policy's there."""
    export_tar(catalog, tmp_path / "whole.tar")
    other = fresh(tmp_path, "other")
    for seed in (70, 71):
        commit(other, "ann", seed)
    before = [bits(other, r) for r in other.log("ann")]
    done = import_tar(other, tmp_path / "whole.tar")
    assert (done.policies, len(done.refused)) == (3, 2)
    assert "'blob/ann@0000000002' is in catalog" in done.refused[1]
    assert list(other.policies()) == ["ann", "ann/notes", "carl", "gone"]
    assert [bits(other, r) for r in other.log("ann")] == before
    assert audit(other).faults == []


EXPORTER = (
    "import sys; from pefx.store.catalog import Catalog; from pefx.store.archive import export_tar\n"
    "catalog = Catalog.open(sys.argv[1], read_only=True); print('go', flush=True); export_tar(catalog, sys.argv[2])"
)


def test_a_killed_export_goes_on(catalog: Catalog, tmp_path: Path) -> None:
    for i in range(30):
        commit(catalog, f"many-{i}", i)
    export_tar(catalog, tmp_path / "whole.tar")
    rng, target = random.Random(3), tmp_path / "part.tar"
    for _ in range(2):
        command = [sys.executable, "-c", EXPORTER, str(tmp_path / "catalog"), str(target)]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        if target.exists():
            break
    assert target.exists() or export_tar(catalog, target) == 35
    assert target.read_bytes() == (tmp_path / "whole.tar").read_bytes()


def test_what_is_exported_is_not_collected_meanwhile(catalog: Catalog, tmp_path: Path) -> None:
    started, wanted = [], [bits(catalog, revision) for revision in catalog.log("bob")]

    def over(policies: int) -> None:
        if not started:  # `bob` was found, and is not written yet
            retire(Catalog.open(tmp_path / "catalog"), "bob")
            started.append(threading.Thread(target=collect, args=(Catalog.open(tmp_path / "catalog"), timedelta(0))))
            started[0].start()
            started[0].join(0.2)
            assert started[0].is_alive()  # it waits

    assert export_tar(catalog, tmp_path / "all.tar", step=over) == 5
    started[0].join()
    assert catalog.log("bob") == []
    other = fresh(tmp_path, "other")
    assert import_tar(other, tmp_path / "all.tar").refused == []
    assert [bits(other, revision) for revision in other.log("bob")] == wanted
    assert audit(other).faults == []


def test_a_catalog_that_cannot_be_locked_is_exported(catalog: Catalog, tmp_path: Path, monkeypatch) -> None:
    def shut(directory: str) -> Any:
        raise PermissionError

    monkeypatch.setattr(archive, "sole_maintainer", shut)
    assert export_tar(Catalog.open(tmp_path / "catalog", read_only=True), tmp_path / "all.tar") == 5
