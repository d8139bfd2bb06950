"""The picture of a family: what is in it, that nothing lies on anything else, and that it stays legible."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from pefx.store.views import Lineage, Node
from pefx.web.lineage_graph import Graph, draw_lineage
from tests.web_catalog import LONG, SCRIPT


def node(key: str, parent: str | None = None, aliases: tuple[str, ...] = (), stage: str = "committed") -> Node:
    return Node(key, 20, parent, aliases, stage, "2026-01-01T00:00:00+00:00")


FAMILY = (
    node("users/ann@1"),
    node("users/ann@2", "users/ann@1", ("prod",), "exposed"),
    node("users/ann@3", "users/ann@2", ("latest", "canary-of-a-long-name", "third")),
    node("users/ann@4", "users/ann@2", stage="retired"),
    node("lab/de@1", "users/ann@1"),
    node("lab/de@2", "lab/de@1", ("latest",)),
)


def tree(graph: Graph) -> ElementTree.Element:
    return ElementTree.fromstring(str(graph.graph))


def linked(graph: Graph) -> dict[str | None, str | None]:
    return {a.get("href"): a.get("class") for a in tree(graph).iter("a")}


def test_a_family() -> None:
    graph = draw_lineage(Lineage("users/ann", FAMILY, False))
    assert linked(graph) == {
        "/revision/users/ann@1": "node current stage-committed",
        "/revision/users/ann@2": "node current stage-exposed",
        "/revision/users/ann@3": "node current stage-committed",
        "/revision/users/ann@4": "node current stage-retired",
        "/revision/lab/de@1": "node stage-committed",
        "/revision/lab/de@2": "node stage-committed",
    }
    edges = [path.get("class") for path in tree(graph).iter("path")]
    assert sorted(map(str, edges)) == ["edge", "edge", "edge current", "edge current", "edge current"]
    names = ElementTree.fromstring(str(graph.names))
    assert [a.get("href") for a in names.iter("a")] == ["/policy/users/ann", "/policy/lab/de"]
    assert (graph.revisions, graph.hidden) == (6, 0)
    assert names.get("height") == tree(graph).get("height")
    titles = [str(title.text) for title in tree(graph).iter("title")]
    assert "users/ann@2, step 20, exposed, prod, 2026-01-01T00:00:00+00:00" in titles


@pytest.mark.parametrize("revisions", [1, 2, 30, 200])
@pytest.mark.parametrize("whole", [False, True])
def test_nothing_lies_on_anything_else(revisions: int, whole: bool) -> None:
    nodes = [
        node(f"{LONG}@{n}", f"{LONG}@{n - 1}" if n > 1 else None, ("an-alias-of-some-length",) if n % 7 == 0 else ())
        for n in range(1, revisions + 1)
    ]
    graph = draw_lineage(Lineage(LONG, tuple(nodes), False), whole)
    picture = tree(graph)
    width = float(picture.get("width", 0))
    for kind in ("node", "pill"):
        boxes = [
            (float(rect.get("x", 0)), float(rect.get("width", 0)))
            for a in picture.iter("a")
            for rect in a.iter("rect")
            if (rect.get("class") == "pill") == (kind == "pill")
        ]
        for (x, wide), (after, _) in pairwise(boxes):
            assert x + wide < after
        assert all(x >= 0 and x + wide <= width for x, wide in boxes)
    if revisions == 200:
        assert (graph.hidden > 100) == (not whole)
        assert whole or width < 5500
    if whole:
        assert len(linked(graph)) == revisions


def test_a_fold_leads_to_everything() -> None:
    nodes = [node(f"a@{n}", f"a@{n - 1}" if n > 1 else None) for n in range(1, 60)]
    graph = draw_lineage(Lineage("a", tuple(nodes), False))
    assert graph.hidden == 56
    assert linked(graph)["/policy/a?whole=1#lineage"] == "node current folded"
    assert "⋯ 56 more" in str(graph.graph)


def test_markup_in_records_is_text() -> None:
    nodes = (node("a@1", SCRIPT, (SCRIPT, '"x'), SCRIPT),)
    graph = draw_lineage(Lineage("a", nodes, False))
    assert "<script" not in str(graph.graph) + str(graph.names)
    assert "edge lost" in str(graph.graph)
    assert list(linked(graph)) == ["/revision/a@1"]


def test_an_empty_family_is_empty() -> None:
    graph = draw_lineage(Lineage("a", (), False))
    assert linked(graph) == {}
