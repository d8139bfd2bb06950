"""Garbage: what nobody can name any more goes, beside writers; what can be named stays."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.store import garbage
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.garbage import collect
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, expire, move_stage, retire, retire_revision, set_alias
from pefx.store.names import parked_key
from pefx.store.parked import Parked, park
from pefx.store.sessions import Wanted, find_session, move_sessions, open_sessions
from tests.store_small import BASE, SPEC, bits, commit, everything, fresh, refused, rival_first

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


def test_what_waits_for_sessions_that_are_over_goes(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    names = ("done", "gone", "on", "passed")
    for name in names:
        park(catalog.space, parked_key(name, 1, 5), Parked({"x": np.zeros(2)}, None))
    done, *_ = open_sessions(catalog, "run", [Wanted(name, BASE, SPEC) for name in names if name != "gone"])
    move_sessions(catalog, [done], "closed", 5)
    open_sessions(catalog, "another", [Wanted("passed", BASE, SPEC)])
    assert len(catalog.space.keys("parked/", "parked0")) == 4
    collect(catalog, NOW)
    assert catalog.space.keys("parked/", "parked0") == [parked_key("on", 1, 5)]
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


def test_what_expired_and_was_collected_is_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PAGE", 2)  # one transaction all the same
    catalog = fresh(tmp_path)
    for seed in range(5):
        commit(catalog, "ann", seed, tags=("x",))
    expire(catalog, "ann", datetime.now(UTC) - timedelta(days=8))
    ended = catalog.policy("ann").expires
    assert collect(catalog, dry_run=True).revisions == 5
    assert catalog.policy("ann").state == "active"
    assert collect(catalog).revisions == 5
    assert (catalog.policy("ann").state, catalog.policy("ann").changed) == ("retired", ended)
    expire(catalog, "ann", None)  # comes too late: nothing of it is there
    assert "is retired" in refused("retired", catalog.serving, "ann")
    refused("retired", commit, catalog, "ann", 9)
    assert [p.name for p in catalog.search(tag="x")] == ["ann"]
    assert audit(catalog).faults == []


def test_what_is_given_more_time_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = fresh(tmp_path)
    made = [commit(catalog, "ann", seed) for seed in range(3)]
    expire(catalog, "ann", datetime.now(UTC) - timedelta(days=8))
    rival = Catalog.open(tmp_path / "catalog")
    rival_first(monkeypatch, lambda: expire(rival, "ann", None))
    assert vars(collect(catalog)) == {"revisions": 0, "blobs": 0, "blob_bytes": 0}
    assert catalog.log("ann") == made
    assert catalog.load(catalog.serving("ann"))
    assert audit(catalog).faults == []


def test_a_retired_policy_with_many_revisions_goes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PAGE", 2)
    catalog = fresh(tmp_path)
    for seed in range(5):
        commit(catalog, "ann", seed)
    retire_revision(catalog, "ann", 1)
    retire(catalog, "ann")
    dry = collect(catalog, NOW, dry_run=True)  # a revision that is over twice counts once
    assert vars(collect(catalog, NOW)) == vars(dry)
    assert (dry.revisions, dry.blobs) == (5, 5)
    assert audit(catalog).faults == []


def test_a_retired_revision_of_a_cut_import_goes(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    for seed in range(3):
        commit(catalog, "ann", seed)
    retire_revision(catalog, "ann", 1)
    catalog.space.transact([Write("policy/ann", None)])  # which comes last
    done = collect(catalog, NOW)
    assert (done.revisions, done.blobs) == (3, 3)
    assert list(everything(catalog)) == ["catalog"]


def test_records_that_get_a_policy_meanwhile_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = fresh(tmp_path)
    open_sessions(catalog, "run", [Wanted("ann", BASE, SPEC)])
    catalog.space.transact([Write("policy/ann", None)])
    rival = Catalog.open(tmp_path / "catalog")
    rival_first(monkeypatch, lambda: open_sessions(rival, "run", [Wanted("ann", BASE, SPEC)]))
    collect(catalog, NOW)
    session = find_session(catalog, catalog.policy("ann"))
    assert session is not None
    assert session.run == "run"
    assert audit(catalog).faults == []
