"""Garbage: what nobody can name any more goes, beside writers; what can be named stays."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pefx.errors import PefxError
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.garbage import collect
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, expire, move_stage, retire, retire_revision, set_alias
from tests.store_small import bits, commit, everything, fresh, refused

NOW = timedelta(0)


def test_nothing_goes_that_is_in_use_or_young(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    for seed in range(3):
        commit(catalog, "ann", seed)
    commit(catalog, "bob")
    retire(catalog, "bob")
    before = everything(catalog)
    assert collect(catalog).revisions == 0  # retired only just now
    assert everything(catalog) == before
    dry = collect(catalog, NOW, dry_run=True)
    assert everything(catalog) == before
    assert (dry.revisions, dry.blobs) == (1, 1)
    done = collect(catalog, NOW)
    assert vars(done) == vars(dry)
    assert sorted(set(before) - set(everything(catalog))) == ["blob/bob@0000000001", "revision/bob@0000000001"]
    assert len(catalog.log("ann")) == 3
    assert audit(catalog).faults == []


def test_single_revisions_and_expired_policies(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    for seed in range(4):
        commit(catalog, "ann", seed)
    move_stage(catalog, "ann", 2, "register")
    retire_revision(catalog, "ann", 2)
    set_alias(catalog, "ann", "latest", 3)
    retire_revision(catalog, "ann", 4)  # the head stays: it says what a commit repeats
    commit(catalog, "old")
    expire(catalog, "old", datetime.now(UTC) - timedelta(days=8))
    done = collect(catalog, timedelta(days=7))
    assert done.revisions == 1  # of the expired one; the others were retired only now
    assert collect(catalog, NOW).revisions == 1
    assert [r.number for r in catalog.log("ann")] == [1, 3, 4]
    assert "retired and collected" in refused("unknown_revision", catalog.get, "ann", 2)
    assert commit(catalog, "ann", 3).number == 4  # the same content again is the head
    assert audit(catalog).faults == []


def test_leftovers_of_a_cut_import_and_of_nobody_go(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    kept = commit(catalog, "ann")
    commit(catalog, "lost")
    catalog.space.transact([Write("policy/lost", None), Write("blob/nobody@0000000001", b"x")])
    assert len(audit(catalog).faults) == 1
    done = collect(catalog, NOW)
    assert (done.revisions, done.blobs) == (1, 2)
    assert audit(catalog).faults == []
    assert bits(catalog, kept)
    assert sorted(catalog.space.keys("", "\x7f")) == [
        "blob/ann@0000000001", "catalog", "policy/ann", "revision/ann@0000000001",
    ]  # fmt: skip


def test_beside_writers_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    catalog, stop = fresh(tmp_path), threading.Event()
    collector, failures = Catalog.open(tmp_path / "catalog"), []

    def collecting() -> None:
        try:
            while not stop.is_set():
                collect(collector, NOW)
        except PefxError as error:
            failures.append(error)

    thread = threading.Thread(target=collecting)
    thread.start()
    kept = []
    try:
        for i in range(25):
            commit(catalog, f"u{i}", i)
            commit(catalog, f"u{i}", i + 100)
            kept.append(branch(catalog, f"u{i}", f"kept-{i}", 1))
            retire(catalog, f"u{i}")
    finally:
        stop.set()
        thread.join()
    assert failures == []
    collect(catalog, NOW)
    assert audit(catalog).faults == []
    fresh_copy = fresh(tmp_path, "other")
    for i, revision in enumerate(kept):
        assert bits(catalog, revision) == bits(fresh_copy, commit(fresh_copy, "x", i))
    assert len(catalog.space.keys("blob/", "blob0")) == 25


def test_read_only_collects_nothing(tmp_path: Path) -> None:
    fresh(tmp_path)
    refused("read_only", collect, Catalog.open(tmp_path / "catalog", read_only=True))
