"""Audit: every kind of damage is found and named, and nothing else."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.encoding import encode
from pefx.store.garbage import collect
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, give, move_stage, retag, retire, set_alias
from pefx.store.scores import record_score
from pefx.store.sessions import Wanted, open_sessions
from tests.store_small import BASE, SPEC, commit, everything, fresh, refused

REVISION, POLICY = "revision/ann@0000000001", "policy/ann"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One of everything."""
    catalog = fresh(tmp_path)
    open_sessions(catalog, "run", [Wanted("ann", BASE, SPEC)])
    first = commit(catalog, "ann", 1)
    commit(catalog, "ann", 2)
    give(catalog, "ann", "team")
    retag(catalog, "ann", add=("x",))
    set_alias(catalog, "ann", "prod", 1)
    move_stage(catalog, "ann", 1, "register")
    branch(catalog, "ann", "bob", 1)
    commit(catalog, "old", 3)
    retire(catalog, "old")
    collect(catalog, timedelta(0))
    record_score(
        catalog, first, renderer="r", scorer="s", path="shared", metrics={"x": 1.0}, samples=1, data_fingerprint="f"
    )
    return catalog


def put(catalog: Catalog, key: str, value: bytes | None) -> None:
    catalog.space.transact([Write(key, value)])


def flipped(catalog: Catalog, key: str) -> bytes:
    value = bytearray(catalog.space.read(key).value or b"")
    value[len(value) // 2] ^= 1
    return bytes(value)


def test_a_sound_catalog_has_no_fault(catalog: Catalog) -> None:
    seen: list[int] = []
    found = audit(catalog, seen.append)
    assert found.faults == []
    assert found.counts == {
        "policy": 3, "session": 1, "revision": 3, "blob": 2, "stage": 1, "score": 1, "owner": 1, "tag": 1, "child": 1,
    }  # fmt: skip
    assert sum(seen) == 3
    assert found.tensor_bytes == 3 * 4 * 3 * 2 * 24 * 4
    assert found.blob_bytes > found.tensor_bytes
    assert found.unnamed == set()


def all_keys(catalog: Catalog) -> list[str]:
    return [key for key in catalog.space.keys("", "\x7f") if key != "catalog"]


def test_a_flipped_byte_of_any_record_or_blob_is_found(catalog: Catalog) -> None:
    for key in all_keys(catalog):
        good = catalog.space.read(key).value
        if not good:
            continue  # an index says what it says by its key
        put(catalog, key, flipped(catalog, key))
        found = audit(catalog)
        assert found.faults, key
        # a blob is named by the revisions that have it, a policy by all that asks for it
        assert all("\n" not in fault.what for fault in found.faults)
        if key == "blob/ann@0000000001":
            assert {fault.key for fault in found.faults} == {REVISION, "revision/bob@0000000001"}
            refused("damaged", catalog.load, catalog.get("ann", 1))
        put(catalog, key, good)
    assert audit(catalog).faults == []


MISSING: dict[str, tuple[set[str], str]] = {
    "blob/ann@0000000001": ({REVISION, "revision/bob@0000000001"}, "are missing"),
    REVISION: ({POLICY, "stage/ann@0000000001"}, "missing"),
    "revision/ann@0000000002": ({POLICY}, "head is 'revision/ann@0000000002', which is missing"),
    "policy/bob": ({"revision/bob@0000000001", "child/ann@0000000001@bob"}, "bob"),
    "owner/team@ann": ({POLICY}, "an index is 'owner/team@ann', which is missing"),
    "tag/x@ann": ({POLICY}, "an index is 'tag/x@ann', which is missing"),
    "child/ann@0000000001@bob": ({"policy/bob"}, "an index is"),
}


@pytest.mark.parametrize("key", MISSING)
def test_what_is_missing_is_found_where_it_is_named(catalog: Catalog, key: str) -> None:
    put(catalog, key, None)
    faults = audit(catalog).faults
    keys, told = MISSING[key]
    assert keys <= {fault.key for fault in faults}
    assert {fault.key for fault in faults} <= keys | {fault.key for fault in faults if fault.key.startswith("score/")}
    assert any(told in fault.what for fault in faults)


LIES: dict[str, tuple[str, Callable[[Catalog], tuple[str, bytes]], str]] = {
    "a head of other content": (
        POLICY,
        lambda c: (POLICY, encode(replace(c.policy("ann"), head_hash="sha256:00"))),
        "its head has content hash",
    ),
    "a record of another": (REVISION, lambda c: (REVISION, encode(c.get("ann", 2))), "its record names 'ann@2'"),
    "a revision above the head": (
        "revision/ann@0000000003",
        lambda c: ("revision/ann@0000000003", encode(replace(c.get("ann", 1), number=3))),
        "stands above its policy's head, 2",
    ),
    "a policy of another spec": (
        "revision/bob@0000000001",
        lambda c: ("policy/bob", encode(replace(c.policy("bob"), spec=replace(SPEC, alpha=1.0)))),
        "has another base or adapter spec",
    ),
    "a wrong size": (
        "blob/ann@0000000001",
        lambda c: (REVISION, encode(replace(c.get("ann", 1), blob_bytes=7))),
        "its record says 7",
    ),
    "an index of nobody": ("tag/y@ann", lambda c: ("tag/y@ann", b""), "names policy 'ann', which does not have it"),
    "a foreign key": ("zebra", lambda c: ("zebra", b"x"), "is no key of a catalog"),
    "a key between": ("mole/x", lambda c: ("mole/x", b"x"), "is no key of a catalog"),
    "a key without a number": ("revision/odd", lambda c: ("revision/odd", b"x"), "is no key of a catalog"),
    "a name that is a path": ("policy/../x", lambda c: ("policy/../x", b"x"), "reads as a path"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(catalog: Catalog, lie: str) -> None:
    key, tell, told = LIES[lie]
    put(catalog, *tell(catalog))
    assert [(fault.key, told in fault.what) for fault in audit(catalog).faults] == [(key, True)]


def test_garbage_is_no_fault(catalog: Catalog) -> None:
    put(catalog, "blob/nobody@0000000001", b"x")
    found = audit(catalog)
    assert (found.faults, found.unnamed) == ([], {"blob/nobody@0000000001"})


def test_a_flipped_bit_of_any_file_is_found_or_harmless(catalog: Catalog, tmp_path: Path) -> None:
    compact(catalog)  # old versions are gone: almost every byte counts
    wanted, rng, found, flips = everything(catalog), random.Random(4), 0, 0
    for file in sorted(path for path in (tmp_path / "catalog").rglob("*") if path.is_file() and path.stat().st_size):
        good = file.read_bytes()
        for _ in range(20):
            flips += 1
            broken = bytearray(good)
            broken[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            file.write_bytes(broken)
            try:
                reader = Catalog.open(tmp_path / "catalog", read_only=True)
                faults = [fault.key for fault in audit(reader).faults]
            except PefxError as error:  # no part of the store can be read without it
                faults = [error.kind]
            if faults:
                found += 1
            else:
                assert everything(reader) == wanted
        file.write_bytes(good)
    assert found > 0.9 * flips > 0
    assert audit(catalog).faults == []


def test_writers_beside_it_are_no_faults(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever changes between two reads of an audit."""
    rival, read_many, turns = Catalog.open(catalog.location), catalog.space.read_many, itertools.count()

    def change(keys: Any) -> Any:
        found, turn = read_many(keys), next(turns)
        if turn % 3 == 0:
            commit(rival, "ann", 100 + turn)
            branch(rival, "ann", f"branch-{turn}")
            commit(rival, f"over-{turn}", turn)
            retag(rival, "ann", add=(f"t{turn}",), remove=(f"t{turn - 3}",) if turn else ())
            retire(rival, f"over-{turn}")
        if turn % 3 == 1:
            collect(rival, timedelta(0))
        return found

    monkeypatch.setattr(catalog.space, "read_many", change)
    for _ in range(3):
        assert audit(catalog).faults == []
