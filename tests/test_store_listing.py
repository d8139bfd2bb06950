"""What `pefx catalog ls | show` print, as text and as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.listing import parse_reference, render_list, render_show

SPEC = AdapterSpec(rank=2, targets=("q_proj",))
LONG = "teams/" + "x" * 122


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    for name, step in [("alice", 10), ("alice", 20), ("bob", 5), (LONG, 1)]:
        factors = {factor: np.full((2, 2, 64), step, np.float32) for factor in "ab"}
        parent = 1 if step == 20 else None
        catalog.commit(
            name,
            adapter={"q_proj": factors},
            spec=SPEC,
            base="sha256:" + "c" * 64,
            step=step,
            seeds={"run": 3},
            config={"learning_rate": 0.005},
            data_fingerprint="sha256:dd",
            metrics={"heldout": 2.25, "note": "[red]no markup[/red]"},
            parent=parent,
        )
    return catalog


def test_list(catalog: Catalog) -> None:
    text = render_list(catalog)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["alice"].split("│")[2:6]] == ["2", "20", "2", "2.1 KB"]
    assert [cell.strip() for cell in rows["bob"].split("│")[2:4]] == ["1", "5"]
    assert catalog.get("bob").content_hash[7:19] in rows["bob"]
    assert "cccccccccccc" in rows["bob"]
    assert max(map(len, text.splitlines())) <= 120
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if "x" in line and "│" in line) == LONG


def test_list_json_and_prefix(catalog: Catalog) -> None:
    rows = json.loads(render_list(catalog, as_json=True))
    assert [(row["policy"], row["number"]) for row in rows] == [("alice", 2), ("bob", 1), (LONG, 1)]
    assert rows[0]["spec"]["targets"] == ["q_proj"]
    assert [row["policy"] for row in json.loads(render_list(catalog, as_json=True, prefix="b"))] == ["bob"]
    assert "alice" not in render_list(catalog, prefix="b")


def test_empty(tmp_path: Path) -> None:
    empty = Catalog.open(tmp_path / "empty", create=True)
    assert "holds no policy" in render_list(empty)
    assert render_list(empty, as_json=True) == "[]"


def test_show(catalog: Catalog) -> None:
    latest = render_show(catalog, "alice")
    for part in ("alice@2", catalog.get("alice").content_hash, "0.005", "[red]no markup[/red]", "history of alice"):
        assert part in latest
    assert "revision alice@1" in render_show(catalog, "alice@1")
    shown = json.loads(render_show(catalog, "alice@1", as_json=True))
    assert (shown["revision"]["number"], shown["revision"]["step"]) == (1, 10)
    assert [(old["number"], old["parent"]) for old in shown["log"]] == [(1, None), (2, 1)]


def test_references(catalog: Catalog) -> None:
    assert parse_reference("a/b") == parse_reference("a/b@latest") == ("a/b", None)
    assert parse_reference("a/b@12") == ("a/b", 12)
    for bad in ("a@", "a@x", "a@-1", "a@1@2", "a@1.0"):
        with pytest.raises(PefxError, match="after '@' comes"):
            parse_reference(bad)
    for reference, kind in [
        ("carol", "unknown_policy"),
        ("alice@3", "unknown_revision"),
        ("alice@0", "unknown_revision"),
    ]:
        with pytest.raises(PefxError) as caught:
            render_show(catalog, reference)
        assert caught.value.kind == kind
