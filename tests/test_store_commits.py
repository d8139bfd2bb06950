"""Commits, one or many: the same revisions either way, whole or not at all."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.store import commits, keyspace
from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft, commit_many
from pefx.store.compaction import disk_bytes
from pefx.store.garbage import collect
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, retire
from tests.store_small import OTHER_BASE, adapter, bits, commit, draft, everything, fresh, refused


def test_in_bulk_is_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "BATCH", 7)
    one, many = fresh(tmp_path, "one"), fresh(tmp_path, "many")
    names = [f"user-{i % 13}" for i in range(40)]  # every policy about three times
    made = list(many.commit_many(draft(name, seed) for seed, name in enumerate(names)))
    for seed, name in enumerate(names):
        commit(one, name, seed)
    assert [(r.policy, r.number) for r in made] == [(n, names[: i + 1].count(n)) for i, n in enumerate(names)]
    for revision in made:
        same = one.get(revision.policy, revision.number)
        assert (same.content_hash, same.blob) == (revision.content_hash, revision.blob)
        assert bits(many, revision) == bits(one, same)
    assert set(everything(one)) == set(everything(many))
    assert audit(many).faults == []
    before = everything(many)
    heads = [draft(name, max(i for i, n in enumerate(names) if n == name)) for name in set(names)]
    assert {r.key for r in many.commit_many(heads)} == {f"{n}@{names.count(n)}" for n in set(names)}
    assert everything(many) == before


def test_bytes_bound_a_transaction_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "BATCH_BYTES", 3000)  # one adapter has 2.5 KB
    catalog = fresh(tmp_path)
    before = len(list((tmp_path / "catalog" / "d").iterdir()))
    assert len(list(catalog.commit_many(draft(f"u{i}") for i in range(5)))) == 5
    assert len(list((tmp_path / "catalog" / "d").iterdir())) - before >= 5


def broken(bad: Draft, at: int) -> Iterator[Draft]:
    for i in range(20):
        yield bad if i == at else draft(f"u{i:02}", i)


@pytest.mark.parametrize("at", [0, 5, 9, 10, 19])
def test_what_cannot_be_stops_there_and_keeps_what_was_whole(tmp_path: Path, monkeypatch, at: int) -> None:
    monkeypatch.setattr(commits, "BATCH", 5)
    catalog = fresh(tmp_path)
    nan = adapter()
    nan["q_proj"]["a"][0, 0, 0] = np.nan
    made = []
    with pytest.raises(PefxError) as caught:
        made.extend(r.policy for r in commit_many(catalog.space, broken(draft("bad", adapter=nan), at)))
    assert caught.value.kind == "not_finite"
    assert "policy 'bad'" in str(caught.value)
    # whole transactions before it; what was packed with it is not written
    whole = [f"u{i:02}" for i in range(at // 5 * 5)]
    assert list(catalog.policies()) == whole
    assert audit(catalog).faults == []


def test_what_the_policy_refuses_writes_nothing_of_its_transaction(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    commit(catalog, "ann", 1)
    before = everything(catalog)
    drafts = [draft("new"), draft("ann", 2, base=OTHER_BASE)]
    refused("wrong_base", lambda: list(catalog.commit_many(drafts)))
    assert everything(catalog) == before


def test_left_in_the_middle_it_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "BATCH", 3)
    catalog = fresh(tmp_path)
    some = catalog.commit_many(draft(f"u{i}", i) for i in itertools.count())
    taken = [next(some).policy for _ in range(4)]
    some.close()
    assert taken == ["u0", "u1", "u2", "u3"]
    commit(Catalog.open(tmp_path / "catalog"), "after")  # would wait for ever for the writer's lock
    assert {"u0", "u5", "after"} <= set(catalog.policies())
    assert audit(catalog).faults == []


def test_drafts_may_come_from_the_catalog_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "BATCH", 2)
    catalog = fresh(tmp_path)

    def drafts() -> Iterator[Draft]:
        for i in range(6):
            commit(catalog, f"beside-{i}")
            yield draft(f"u{i}", i)

    assert len(list(catalog.commit_many(drafts()))) == 6


def test_a_parent_must_be_there(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    commit(catalog, "ann")
    assert commit(catalog, "bob", parent="ann@1").parent == "ann@1"
    refused("unknown_revision", commit, catalog, "bob", 2, parent="ann@2")
    refused("bad_name", commit, catalog, "bob", 2, parent="../x@1")


def test_a_parent_is_remembered_by_its_number(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    for seed in range(2):
        commit(catalog, "ann", seed)
    named = [commit(catalog, "bob", seed, parent=p) for seed, p in enumerate(("ann", "ann@latest", "ann@01"))]
    assert [r.parent for r in named] == ["ann@2", "ann@2", "ann@1"]
    assert [r.parent for r in catalog.log("bob")] == ["ann@2", "ann@2", "ann@1"]


def test_a_parent_may_come_in_the_same_stream(tmp_path: Path) -> None:
    one, many = fresh(tmp_path, "one"), fresh(tmp_path, "many")
    drafts = [
        draft("ann", 1),
        draft("bob", 2, parent="ann@1"),
        draft("carl", 3, parent="bob"),
        draft("ann", 4, parent="ann@1"),
        draft("carl", 5, parent="ann@latest"),
    ]
    made = list(many.commit_many(drafts))
    assert [r.parent for r in made] == [None, "ann@1", "bob@1", "ann@1", "ann@2"]
    singles = [next(one.commit_many([each])) for each in drafts]
    assert [(r.key, r.parent, r.content_hash) for r in singles] == [(r.key, r.parent, r.content_hash) for r in made]


def test_owners_and_tags(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    commit(catalog, "notes", 1, owner="ann", tags=("b", "a", "b"))
    assert (catalog.policy("notes").owner, catalog.policy("notes").tags) == ("ann", ("a", "b"))
    commit(catalog, "notes", 2, tags=("c",))
    commit(catalog, "notes", 3, owner="ann")
    assert catalog.policy("notes").tags == ("a", "b", "c")
    assert "belongs to ann, not to 'bob'" in refused("wrong_owner", commit, catalog, "notes", 4, owner="bob")
    refused("bad_name", commit, catalog, "x", owner="a b")
    refused("bad_name", commit, catalog, "x", tags=("a/b",))
    assert [p.name for p in catalog.search(tag="c")] == ["notes"]
    assert [p.name for p in catalog.search(owner="ann")] == ["notes"]
    assert audit(catalog).faults == []


@pytest.mark.parametrize("field", ["config", "metrics"])
def test_free_fields_are_json(tmp_path: Path, field: str) -> None:
    catalog = fresh(tmp_path)
    told = refused("invalid_input", commit, catalog, "ann", **{field: {"x": float("nan")}})
    assert f"policy 'ann': field '{field}'" in told
    assert list(catalog.policies()) == []


def test_weights_are_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch came without its source: its weights lie under a key that a policy of that name would use."""
    monkeypatch.setattr(commits, "BATCH", 3)
    home, catalog = fresh(tmp_path, "home"), fresh(tmp_path)
    for seed in (1, 2):
        commit(home, "ann", seed)
    wanted = bits(home, branch(home, "ann", "bob", 2))
    export_tar(home, tmp_path / "bob.tar", Slice(prefix="bob"))
    import_tar(catalog, tmp_path / "bob.tar")
    drafts = [draft("a", 7), draft("ann", 8), draft("ann", 9), draft("zed", 10), draft("ann", 11)]
    made = list(catalog.commit_many(drafts))
    assert [r.key for r in made] == ["a@1", "ann@1", "ann@2", "zed@1", "ann@3"]
    assert bits(catalog, catalog.get("bob")) == wanted
    assert [r.blob for r in made[1:3]] == ["blob/ann@0000000001", "blob/ann@1000000002"]
    other = fresh(tmp_path, "other")
    for revision, one in zip(made, drafts, strict=True):
        assert catalog.get(revision.policy, revision.number) == revision
        assert bits(catalog, revision) == bits(other, next(other.commit_many([one])))
    export_tar(catalog, tmp_path / "all.tar")
    again = fresh(tmp_path, "again")
    import_tar(again, tmp_path / "all.tar")
    assert everything(again) == everything(catalog)
    retire(catalog, "bob")
    collect(catalog, timedelta(0))  # nobody names what lay in the way now
    assert "blob/ann@0000000002" not in everything(catalog)
    assert audit(catalog).faults == []
    assert bits(catalog, catalog.get("ann", 2)) == bits(again, again.get("ann", 2))


def test_a_rival_is_told_where_weights_lie_in_the_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = fresh(tmp_path)
    catalog.space.transact([Write("blob/ann@0000000001", b"x")])
    rival, blobs_aside = Catalog.open(tmp_path / "catalog"), commits._blobs_aside

    def beaten(*arguments: Any) -> Any:
        monkeypatch.setattr(commits, "_blobs_aside", blobs_aside)
        found = blobs_aside(*arguments)
        commit(rival, "ann", 2)
        return found

    monkeypatch.setattr(commits, "_blobs_aside", beaten)
    refused("conflict", commit, catalog, "ann", 1)
    assert [r.blob for r in catalog.log("ann")] == ["blob/ann@1000000001"]
    assert commit(catalog, "ann", 1).blob == "blob/ann@0000000002"


def before_the_lock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """When a writer has put its transaction together, once, `act` happens before it has its turn."""
    turn = keyspace.sole_writer

    @contextmanager
    def late(directory: str) -> Iterator[None]:
        monkeypatch.setattr(keyspace, "sole_writer", turn)
        act()
        with turn(directory):
            yield

    monkeypatch.setattr(keyspace, "sole_writer", late)


def test_who_waited_for_another_writes_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, rival = fresh(tmp_path), Catalog.open(tmp_path / "catalog")
    written = 0
    for turn in range(10):
        before_the_lock(monkeypatch, lambda turn=turn: commit(rival, f"rival-{turn}"))
        drafts = [draft(f"u{turn}-{i}", i) for i in range(50)]
        written += sum(revision.blob_bytes for revision in catalog.commit_many(drafts))
    assert disk_bytes(str(tmp_path / "catalog")) < 1.5 * written
