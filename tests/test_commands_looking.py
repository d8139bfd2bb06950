"""Commands that look: tables and JSON, faults with a status of their own."""

import json
from pathlib import Path

import pytest

from pefx.store.catalog import Catalog
from pefx.store.keyspace import Write
from tests.commands_small import grown, run
from tests.store_small import commit


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    return grown(tmp_path, monkeypatch)


def test_looking(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    commit(catalog, "bob", 7, tags=("x",), owner="team")
    assert "ann" in run(capsys, "ls")
    rows = json.loads(run(capsys, "ls", "--json", "--limit", "1"))
    assert [row["policy"]["name"] for row in rows] == ["ann"]
    rows = json.loads(run(capsys, "ls", "--json", "--behind", "ann", "--tag", "x", "--owner", "team"))
    assert [(row["policy"]["name"], row["latest"]["number"]) for row in rows] == [("bob", 1)]
    assert json.loads(run(capsys, "ls", "--json", "--prefix", "z")) == []
    assert "revision ann@2" in run(capsys, "show", "ann@2")
    assert json.loads(run(capsys, "show", "ann@latest", "--json"))["revision"]["number"] == 3
    assert [r["number"] for r in json.loads(run(capsys, "log", "ann", "--json"))] == [1, 2, 3]
    assert "history of ann" in run(capsys, "log", "ann")
    assert json.loads(run(capsys, "diff", "ann@1", "ann@2", "--json"))["fields"]["step"] == [0, 1]
    assert "ann@1 to bob@1" in run(capsys, "diff", "ann@1", "bob")
    assert json.loads(run(capsys, "stats", "--json"))["records"]["revision"] == 4
    assert "active 2" in run(capsys, "stats")
    assert json.loads(run(capsys, "audit", "--json"))["faults"] == []


def test_damage_has_an_exit_status_of_its_own(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.space.transact([Write("blob/ann@0000000002", b"x" * 3000)])
    assert "fault in 'revision/ann@0000000002'" in run(capsys, "audit", code=3)
    assert len(json.loads(run(capsys, "audit", "--json", code=3))["faults"]) == 1


def test_what_was_collected_is_shown(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "retire", "ann")
    run(capsys, "gc", "--days", "0")
    assert "retired" in run(capsys, "show", "ann")
    assert json.loads(run(capsys, "show", "ann", "--json"))["revision"] is None
    assert "any more" in run(capsys, "show", "ann@2", code=2)
