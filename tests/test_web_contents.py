"""What pages hold: searches as addresses say them, pages that follow each other, and comparisons that are bounded."""

import json
from pathlib import Path

import pytest

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch
from pefx.store.listing import as_json
from pefx.store.views import about, curves, lineage, population
from pefx.web import contents
from pefx.web.contents import Count, Query, policy_page, population_page, revision_page
from tests.web_catalog import commit, family, grow, hostile


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    made = Catalog.open(tmp_path_factory.mktemp("pages") / "catalog", create=True)
    family(made)
    hostile(made)
    return made


def test_queries_are_read() -> None:
    assert Query.read({}) == Query()
    said = {"prefix": " users/ ", "tag": "beta", "owner": "", "behind": "users/ann", "limit": "7", "other": "x"}
    query = Query.read(said)
    assert query == Query("users/", "beta", None, "users/ann", 7)
    assert query.plain() == {"prefix": "users/", "tag": "beta", "behind": "users/ann", "limit": 7}
    assert query.filtered
    assert Query.read({"behind": "a"}).plain() == {"behind": "a"}
    assert not Query.read({"behind": "a"}).filtered


@pytest.mark.parametrize(
    "said",
    [{"limit": limit} for limit in ("0", "501", "-1", "x", "1.5", "10000000000", "²")]
    + [{"prefix": prefix} for prefix in ("a b", "ü", "\ud7ff", "a@", "a" * 129)]
    + [{"behind": "a\0"}],
)
def test_what_cannot_be_searched_for_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(PefxError) as caught:
        Query.read(said)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_pages_follow_each_other(catalog: Catalog) -> None:
    count = Count(catalog)
    names, behind = [], None
    while True:
        page = population_page(catalog, Query(limit=2, behind=behind), count)
        names += [row.policy.name for row in page.rows]
        behind = page.behind
        if behind is None:
            break
        assert len(page.rows) == 2
    assert names == list(catalog.policies())
    assert page.count == len(names) == 5


def test_a_page_that_is_just_full_has_no_next_one(catalog: Catalog) -> None:
    assert population_page(catalog, Query(limit=5), Count(catalog)).behind is None


def test_pages_hold_what_the_commands_print(catalog: Catalog) -> None:
    page = population_page(catalog, Query(tag="beta"), Count(catalog))
    assert page.rows == population(catalog, tag="beta")
    found = policy_page(catalog, "users/ann")
    assert found.policy == catalog.policy("users/ann")
    assert found.history == catalog.log("users/ann")
    assert found.lineage == lineage(catalog, "users/ann")
    assert found.curves == curves(catalog, "users/ann")
    shown = revision_page(catalog, "users/ann@prod").plain()
    printed = about(catalog, "users/ann@prod")
    assert {name: shown[name] for name in ("policy", "revision", "stage", "scores")} == {
        name: printed[name] for name in ("policy", "revision", "stage", "scores")
    }


@pytest.mark.parametrize("name", ["users/ann", "users/new", "odd"])
def test_pages_are_json(catalog: Catalog, name: str) -> None:
    for page in (policy_page(catalog, name), population_page(catalog, Query(), Count(catalog))):
        assert json.loads(as_json(page.plain()))


def test_a_revision_is_compared_with_its_parent(catalog: Catalog) -> None:
    page = revision_page(catalog, "users/ann@6")
    assert page.difference is not None
    assert (page.difference.before, page.difference.after, page.not_compared) == ("users/ann@4", "users/ann@6", None)
    assert page.aliases == ("latest",)
    branched = revision_page(catalog, "users/ann-de@1")
    assert branched.difference is not None
    assert branched.difference.same_content


def test_why_a_revision_is_not_compared(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fresh adapter" in str(revision_page(catalog, "users/ann@1").not_compared)
    assert "policy name '<script>" in str(revision_page(catalog, "odd@1").not_compared)
    monkeypatch.setattr(contents, "MOST_DIFF_BYTES", 100)
    page = revision_page(catalog, "users/ann@6")
    assert page.difference is None
    assert f"pefx catalog diff {catalog.location} users/ann@4 users/ann@6" in str(page.not_compared)


def test_missing_weights_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    grow(catalog, "a", 2)
    catalog.space.transact([Write(catalog.get("a", 1).blob, None)])
    page = revision_page(catalog, "a@2")
    assert page.revision.number == 2
    assert "missing" in str(page.not_compared)


def test_counting_takes_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    clock = [0.0]
    listed = []
    keys = catalog.space.keys

    def slow_keys(start: str, end: str) -> list[str]:
        listed.append(start)
        clock[0] += 0.5
        return keys(start, end)

    monkeypatch.setattr(contents.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(catalog.space, "keys", slow_keys)
    count = Count(catalog)
    assert count() == 0
    commit(catalog, "a", 1)
    clock[0] = 49.0
    assert count() == 0
    assert len(listed) == 1
    clock[0] = 50.5
    assert count() == 1
    assert len(listed) == 2


def test_a_policy_is_in_its_lineage_however_many_siblings_it_has(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    grow(catalog, "root", 1)
    for number in range(60):
        branch(catalog, "root", f"b{number:02}")
    branch(catalog, "b59", "b59/below")
    found = policy_page(catalog, "b59/below").lineage
    names = [node.key.split("@")[0] for node in found.nodes]
    assert (names[0], len(names), len(set(names)), found.cut) == ("root", 50, 50, True)
    assert {"b59", "b59/below", "b00"} <= set(names)
    assert "b59/below" in {node.key.split("@")[0] for node in policy_page(catalog, "b59").lineage.nodes}
    few = [lineage(catalog, name, policies=100).nodes for name in ("root", "b07", "b59/below")]
    assert few[0] == few[1] == few[2]
    assert len(few[0]) == 62
