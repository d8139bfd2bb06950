"""Views: pages that join without gaps, figures that add up, families whole or cut."""

from datetime import timedelta
from pathlib import Path

import pytest

from pefx.store.catalog import Catalog
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, retire, set_alias
from pefx.store.scores import record_score
from pefx.store.sessions import Wanted, open_sessions
from pefx.store.views import about, curves, flat_numbers, lineage, population, stats
from tests.store_small import BASE, SPEC, commit, fresh, refused


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return fresh(tmp_path)


def test_pages_join(catalog: Catalog) -> None:
    names = sorted([*(f"user-{i:03}" for i in range(25)), "user", "user/x", "zed"])
    for name in names:
        commit(catalog, name, tags=("odd",) if len(name) % 2 else ())
    for limit in (1, 4, 7, 100):
        seen, behind = [], None
        while page := population(catalog, behind=behind, limit=limit):
            assert len(page) <= limit
            seen += [row.policy.name for row in page]
            behind = seen[-1]
        assert seen == names
    assert [row.policy.name for row in population(catalog, prefix="user/")] == ["user/x"]
    odd = [row.policy.name for row in population(catalog, tag="odd", prefix="user-", limit=3)]
    assert odd == []
    assert [row.policy.name for row in population(catalog, tag="odd")] == ["zed"]
    for limit in (0, -1, 10_001, 2_000_000):
        assert "a page has 1 to 10000" in refused("invalid_input", population, catalog, limit=limit)


def test_rows_without_a_revision(catalog: Catalog) -> None:
    open_sessions(catalog, "run", [Wanted("new", BASE, SPEC)])
    (row,) = population(catalog)
    assert row.latest is None
    assert row.plain()["latest"] is None
    found = about(catalog, "new")
    assert (found["revision"], found["session"]["run"], found["scores"]) == (None, "run", [])


def test_stats_add_up(catalog: Catalog) -> None:
    for seed in range(3):
        commit(catalog, "ann", seed, owner="team")
    commit(catalog, "bob", owner="team")
    commit(catalog, "old")
    retire(catalog, "old")
    seen: list[int] = []
    found = stats(catalog, seen.append)
    assert found.records == {"policy": 3, "session": 0, "revision": 5, "blob": 5, "stage": 0, "score": 0}
    assert dict(found.states) == {"active": 2, "retired": 1}
    assert found.revision_bytes == sum(r.blob_bytes for name in catalog.policies() for r in catalog.log(name))
    assert found.disk_bytes is not None
    assert found.disk_bytes > found.revision_bytes
    assert (found.owners, sum(seen)) == (1, 13)


def test_a_family(catalog: Catalog) -> None:
    for seed in range(3):
        commit(catalog, "ann", seed)
    branch(catalog, "ann", "bob", 2)
    commit(catalog, "bob", 9, parent="bob@1")
    branch(catalog, "bob", "carl", 2)
    set_alias(catalog, "ann", "prod", 1)
    trees = [lineage(catalog, name) for name in ("ann", "bob", "carl")]
    assert len({tree.nodes for tree in trees}) == 1
    parents = {node.key: node.parent for node in trees[0].nodes}
    assert parents == {
        "ann@1": None, "ann@2": "ann@1", "ann@3": "ann@2", "bob@1": "ann@2", "bob@2": "bob@1", "carl@1": "bob@2",
    }  # fmt: skip
    aliases = {node.key: node.aliases for node in trees[0].nodes if node.aliases}
    assert aliases["ann@1"] == ("prod",)
    assert not trees[0].cut
    for i in range(6):
        branch(catalog, "ann", f"many-{i}", 1)
    cut = lineage(catalog, "carl", policies=4)
    assert cut.cut
    assert {"ann@1", "bob@1", "carl@1"} <= {node.key for node in cut.nodes}


def test_curves(catalog: Catalog) -> None:
    for seed, loss in enumerate((3.0, 2.5, 2.0)):
        revision = commit(catalog, "ann", seed, metrics={"heldout": {"nats": loss}, "ok": True, "note": "x"})
        record_score(
            catalog, revision, renderer="chat", scorer="exact", path="isolated", metrics={"accuracy": seed / 4},
            samples=4, data_fingerprint="f",
        )  # fmt: skip
    found = {(curve.name, curve.source): curve.points for curve in curves(catalog, "ann")}
    assert found == {
        ("heldout.nats", "training"): ((1, 3.0), (2, 2.5), (3, 2.0)),
        ("accuracy", "exact, chat, isolated"): ((1, 0.0), (2, 0.25), (3, 0.5)),
    }
    assert flat_numbers({"a": {"b": 1}, "c": [1], "d": None}) == {"a.b": 1.0}


def test_about_what_was_collected(catalog: Catalog) -> None:
    commit(catalog, "ann")
    retire(catalog, "ann")
    collect(catalog, timedelta(0))
    found = about(catalog, "ann")
    assert (found["policy"]["state"], found["revision"], found["stage"]) == ("retired", None, None)
    refused("unknown_revision", about, catalog, "ann@1")
    assert lineage(catalog, "ann").nodes == ()
    assert [(row.policy.name, row.latest) for row in population(catalog)] == [("ann", None)]


def test_what_is_in_no_name_is_told(catalog: Catalog) -> None:
    commit(catalog, "ann")
    for odd in ("\udcff", "\U0010ffff", "ä"):
        refused("bad_name", catalog.search, odd)
        refused("bad_name", catalog.search, behind=odd)
        refused("bad_name", list, catalog.policies(odd))
    assert catalog.search("a", behind="zzz") == []
    assert catalog.search("b", behind="a") == []
