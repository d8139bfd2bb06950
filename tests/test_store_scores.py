"""Scores: records of their own, never changed, and gone only with their revision."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from pefx.store.audit import audit
from pefx.store.garbage import collect
from pefx.store.lifecycle import retire
from pefx.store.records import Revision, Score
from pefx.store.scores import record_score, scores
from tests.store_small import commit, fresh, refused


def score(catalog: Any, revision: Revision, **changes: Any) -> Score:
    fields: dict[str, Any] = {
        "renderer": "chat", "scorer": "exact", "path": "isolated", "metrics": {"accuracy": 0.5}, "samples": 8,
        "data_fingerprint": "f",
    }  # fmt: skip
    return record_score(catalog, revision, **{**fields, **changes})


def test_scores_name_what_they_are_of(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    first, second = commit(catalog, "ann", 1), commit(catalog, "ann", 2)
    one = score(catalog, first)
    assert (one.key, one.content_hash, one.base) == ("ann@1", first.content_hash, first.base)
    assert score(catalog, first) == one  # the same finding again
    other = score(catalog, first, path="shared")
    score(catalog, second, metrics={"accuracy": 1})
    assert {s.path for s in scores(catalog, "ann", 1)} == {"isolated", "shared"}
    assert [s.number for s in scores(catalog, "ann")] == [1, 1, 2]
    assert scores(catalog, "ann", 2)[0].metrics == {"accuracy": 1.0}
    assert other in scores(catalog, "ann")
    refused("invalid_input", score, catalog, first, metrics={"accuracy": float("nan")})
    assert audit(catalog).faults == []


def test_they_go_with_their_revision(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    revision = commit(catalog, "ann")
    score(catalog, revision)
    retire(catalog, "ann")
    collect(catalog, timedelta(0))
    assert scores(catalog, "ann") == []
    assert catalog.space.keys("score/", "score0") == []
    refused("unknown_revision", score, catalog, revision)
    assert audit(catalog).faults == []
