"""Places of revisions: lanes, columns, folds, and what damage may have made of a family."""

import random

from pefx.store.views import Lineage, Node
from pefx.web.lineage_layout import FOLD_ABOVE, Layout, lay_out


def node(key: str, parent: str | None = None, aliases: tuple[str, ...] = (), stage: str = "committed") -> Node:
    return Node(key, 1, parent, aliases, stage, "2026-01-01T00:00:00+00:00")


def chain(name: str, length: int, origin: str | None = None, **named: int) -> list[Node]:
    keys = [origin, *(f"{name}@{number}" for number in range(1, length + 1))]
    aliases = {number: tuple(alias for alias, n in named.items() if n == number) for number in range(1, length + 1)}
    return [node(str(keys[n]), keys[n - 1], aliases[n]) for n in range(1, length + 1)]


def columns(layout: Layout) -> dict[str, int]:
    return {mark.key: mark.column for mark in layout.marks}


def test_a_family_lies_in_lanes() -> None:
    nodes = chain("a", 4) + chain("b", 2, "a@1") + chain("c", 2, "a@3") + chain("d", 1, "b@2")
    layout = lay_out(Lineage("a", tuple(nodes), False))
    assert layout.lanes == ("a", "c", "b", "d")  # the latest branch next to what it comes from
    assert columns(layout) == {
        "a@1": 0,
        "a@2": 1,
        "a@3": 2,
        "a@4": 3,
        "b@1": 1,
        "b@2": 2,
        "c@1": 3,
        "c@2": 4,
        "d@1": 3,
    }
    assert [(mark.key, mark.parent, mark.lane) for mark in layout.marks if mark.key == "d@1"] == [("d@1", "b@2", 3)]


def test_what_goes_back_still_lies_behind() -> None:
    nodes = [*chain("a", 3), node("a@4", "a@1")]
    assert columns(lay_out(Lineage("a", tuple(nodes), False)))["a@4"] == 3


def test_one_revision_and_none() -> None:
    assert lay_out(Lineage("a", (), False)) == Layout((), ())
    (mark,) = lay_out(Lineage("a", (node("a@1"),), False)).marks
    assert (mark.column, mark.lane, mark.parent, mark.lost, mark.hidden) == (0, 0, None, False, 0)


def test_a_lost_parent_is_told() -> None:
    (mark,) = lay_out(Lineage("a", (node("a@7", "gone@3"),), False)).marks
    assert mark.lost
    assert mark.parent is None


def test_long_histories_fold_what_nothing_names() -> None:
    nodes = [*chain("a", 200, prod=120, latest=200), *chain("b", 2, "a@40")]
    layout = lay_out(Lineage("a", tuple(nodes), False))
    kept = [(mark.key, mark.hidden) for mark in layout.marks if mark.lane == 0]
    folded = [("a@2", 38), ("a@41", 79), ("a@121", 78)]
    assert kept == [("a@1", 0), folded[0], ("a@40", 0), folded[1], ("a@120", 0), folded[2], ("a@199", 0), ("a@200", 0)]
    assert {mark.parent for mark in layout.marks} == {
        None,
        "a@1",
        "a@2",
        "a@40",
        "a@41",
        "a@120",
        "a@121",
        "a@199",
        "b@1",
    }
    whole = lay_out(Lineage("a", tuple(nodes), False), whole=True)
    assert len(whole.marks) == 202
    assert not any(mark.hidden for mark in whole.marks)


def test_short_histories_are_whole() -> None:
    nodes = chain("a", FOLD_ABOVE)
    assert len(lay_out(Lineage("a", tuple(nodes), False)).marks) == FOLD_ABOVE


def test_staged_revisions_are_not_folded() -> None:
    nodes = chain("a", 50)
    nodes[24] = node("a@25", "a@24", stage="retired")
    assert "a@25" in columns(lay_out(Lineage("a", tuple(nodes), False)))


def test_any_parents_have_a_layout() -> None:
    """Circles, parents of a later revision and no references at all: everything has a place of its own in its lane."""
    for seed in range(200):
        chosen = random.Random(seed)
        keys = [f"{name}@{n}" for name in "abc" for n in range(1, chosen.randrange(2, 20))]
        wrong = ["<script>", "a@x", "@", "", "a@1@2"]
        nodes = [node(key, chosen.choice([*keys, *wrong, None])) for key in keys]
        for whole in (True, False):
            layout = lay_out(Lineage("a", tuple(nodes), False), whole)
            shown = sum(max(mark.hidden, 1) for mark in layout.marks)
            assert shown == len(keys)
            places = [(mark.lane, mark.column) for mark in layout.marks]
            assert len(set(layout.lanes)) == 3
            if not circular(nodes):
                assert len(set(places)) == len(places)


def circular(nodes: list[Node]) -> bool:
    """Whether parents and the order of numbers contradict each other."""
    numbers = {n.key: (n.key.split("@")[0], int(n.key.split("@")[1])) for n in nodes}
    before = {n.key: [n.parent] if n.parent in numbers else [] for n in nodes}
    for key, (name, number) in numbers.items():
        before[key] += [k for k, place in numbers.items() if place == (name, number - 1)]
    while before:
        free = [key for key, first in before.items() if not any(k in before for k in first)]
        if not free:
            return True
        for key in free:
            del before[key]
    return False
