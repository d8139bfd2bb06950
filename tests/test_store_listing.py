"""What the commands print: everything that matters, in lines that fit, without markup."""

import json
from pathlib import Path

import pytest

from pefx.store.audit import Audit, Fault
from pefx.store.catalog import Catalog
from pefx.store.difference import difference
from pefx.store.lifecycle import retag, set_alias
from pefx.store.listing import (
    as_json,
    audit_text,
    diff_tables,
    list_table,
    log_table,
    plain_audit,
    show_tables,
    size,
    stats_table,
)
from pefx.store.scores import record_score
from pefx.store.views import about, population, stats
from tests.store_small import commit, fresh

LONG = "x" * 60 + "/" + "y" * 60


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = fresh(tmp_path)
    commit(catalog, "alice", 1, config={"note": "[red]no markup[/red]"})
    commit(catalog, "alice", 2, step=20, parent="alice@1")
    commit(catalog, "bob", 3, step=5, owner="team", tags=("x", "y"))
    commit(catalog, LONG, 4)
    set_alias(catalog, "alice", "prod", 1)
    return catalog


def test_list(catalog: Catalog) -> None:
    text = list_table(population(catalog), "here", more=False)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["alice"].split("│")[2:7]] == ["active", "2", "20", "2", "2.5 KB"]
    assert catalog.get("bob").content_hash[7:19] in rows["bob"]
    assert "team #x #y" in rows["bob"]
    assert max(map(len, text.splitlines())) <= 120
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if "│" in line).endswith(LONG)
    assert "--behind bob" in list_table(population(catalog, limit=2), "here", more=True)
    assert "holds no such policy" in list_table([], "here", more=False)


def test_show_and_log(catalog: Catalog) -> None:
    revision = catalog.get("alice", 1)
    record_score(
        catalog, revision, renderer="chat", scorer="exact", path="shared", metrics={"accuracy": 0.5}, samples=8,
        data_fingerprint="f",
    )  # fmt: skip
    text = show_tables(about(catalog, "alice@prod"))
    for part in (
        "policy alice",
        "revision alice@1",
        revision.content_hash,
        "[red]no markup[/red]",
        "accuracy",
        "exact",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    log = [line for line in log_table(catalog.policy("alice"), catalog.log("alice")).splitlines() if "│" in line]
    assert [[cell.strip() for cell in line.split("│")[1:4]] for line in log] == [
        ["2", "latest", "alice@1"], ["1", "prod", "-"],
    ]  # fmt: skip


def test_diff_stats_and_audit(catalog: Catalog) -> None:
    text = diff_tables(difference(catalog, "alice@1", "alice@2"))
    assert all(part in text for part in ("alice@1 to alice@2", "step", "q_proj", "%"))
    commit(catalog, "same", 1)
    assert "the same" in diff_tables(difference(catalog, "alice@1", "same"))
    retag(catalog, "bob", add=("z",))
    table = stats_table(stats(catalog), "here")
    assert "active 4" in table
    found = Audit()
    found.counts["policy"] = 2
    assert audit_text(found, "here").endswith("no fault")
    found.faults.append(Fault("policy/x", "is odd"))
    found.unnamed.add("blob/x")
    assert "fault in 'policy/x': is odd" in audit_text(found, "here")
    assert "gc removes them" in audit_text(found, "here")
    assert json.loads(as_json(plain_audit(found)))["faults"] == [{"key": "policy/x", "what": "is odd"}]


def test_sizes() -> None:
    assert [size(n) for n in (0, 1536, 3 << 20)] == ["0.0 KB", "1.5 KB", "3.0 MB"]
