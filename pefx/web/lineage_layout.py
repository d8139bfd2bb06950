"""Where the revisions of a family lie: a lane for each policy, columns that run with descent."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pefx.store.views import Lineage, Node

FOLD_ABOVE = 30  # revisions; fewer are all shown
SHORTEST_FOLD = 3


@dataclass(frozen=True)
class Mark:
    """A place in a lane: a revision, or `hidden` ones in a row, the first of which `node` is.

    `parent` is the key of another mark; `lost` tells that it came from a revision that is not here.
    """

    node: Node
    number: int
    lane: int
    column: int
    parent: str | None
    lost: bool
    hidden: int = 0

    @property
    def key(self) -> str:
        return self.node.key


@dataclass(frozen=True)
class Layout:
    """Policies, one a lane from the top, and marks in an order in which parents come first."""

    lanes: tuple[str, ...]
    marks: tuple[Mark, ...]


def lay_out(lineage: Lineage, whole: bool = False) -> Layout:
    """The places of `lineage`; where it is long and not asked for `whole`, uneventful runs are one mark each."""
    lanes = _lanes(lineage)
    order = _lane_order(lanes)
    runs = _runs(lanes, fold=not whole and len(lineage.nodes) > FOLD_ABOVE)
    stands_for = {node.key: run[0].key for lane in runs.values() for run in lane for node in run}
    parents: dict[str, str | None] = {}
    before: dict[str, list[str]] = defaultdict(list)
    for lane in runs.values():
        for previous, run in zip([None, *lane], lane):
            key = run[0].key
            parent = stands_for.get(run[0].parent or "")
            parents[key] = None if parent == key else parent
            before[key] = [k for k in (parents[key], previous[0].key if previous else None) if k]
    columns = _columns([run[0].key for lane in order for run in runs[lane]], before)
    marks = [
        Mark(
            node=run[0],
            number=_number(run[0].key),
            lane=order.index(name),
            column=columns[run[0].key],
            parent=parents[run[0].key],
            lost=run[0].parent is not None and parents[run[0].key] is None,
            hidden=len(run) if len(run) > 1 else 0,
        )
        for name in order
        for run in runs[name]
    ]
    return Layout(tuple(order), tuple(sorted(marks, key=lambda mark: (mark.column, mark.lane))))


def _policy(key: str) -> str:
    return key.rsplit("@", 1)[0]


def _number(key: str) -> int:
    return int(key.rsplit("@", 1)[1])


def _lanes(lineage: Lineage) -> dict[str, list[Node]]:
    lanes: dict[str, list[Node]] = defaultdict(list)
    for node in lineage.nodes:
        lanes[_policy(node.key)].append(node)
    return {name: sorted(nodes, key=lambda node: _number(node.key)) for name, nodes in lanes.items()}


def _lane_order(lanes: Mapping[str, Sequence[Node]]) -> list[str]:
    """Branches below what they come from, the latest next to it: so no branch's line crosses another."""
    branches: dict[str, list[tuple[int, str]]] = defaultdict(list)
    there = {node.key for nodes in lanes.values() for node in nodes}
    roots = []
    for name, nodes in lanes.items():
        origin = nodes[0].parent
        if origin is None or origin not in there or _policy(origin) == name:
            roots.append(name)
        else:
            branches[_policy(origin)].append((_number(origin), name))
    order: list[str] = []
    waiting = [*reversed(list(lanes)), *reversed(roots)]  # those of no root, which damage could make, come last
    while waiting:
        name = waiting.pop()
        if name not in order:
            order.append(name)
            waiting += [branch for _, branch in sorted(branches[name])]
    return order


def _runs(lanes: Mapping[str, Sequence[Node]], fold: bool) -> dict[str, list[list[Node]]]:
    """The revisions of every lane, uneventful ones in a row together: not named, not staged, nothing branches there."""
    children: dict[str, int] = defaultdict(int)
    for nodes in lanes.values():
        for node in nodes:
            children[node.parent or ""] += 1
    return {name: _folded(nodes, children) if fold else [[node] for node in nodes] for name, nodes in lanes.items()}


def _folded(nodes: Sequence[Node], children: Mapping[str, int]) -> list[list[Node]]:
    runs: list[list[Node]] = []
    quiet: list[Node] = []

    def close() -> None:
        runs.extend([quiet[:]] if len(quiet) >= SHORTEST_FOLD else [[node] for node in quiet])
        quiet.clear()

    for index, node in enumerate(nodes):
        inner = 0 < index < len(nodes) - 2
        follows = index > 0 and node.parent == nodes[index - 1].key
        if inner and follows and not node.aliases and node.stage == "committed" and children[node.key] == 1:
            quiet.append(node)
            continue
        close()
        runs.append([node])
    close()
    return runs


def _columns(keys: Iterable[str], before: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """One column behind all that comes before; a circle, which no sound catalog has, is cut where it is met."""
    columns: dict[str, int] = {}
    entered: set[str] = set()
    for start in keys:
        stack = [start]
        while stack:
            key = stack[-1]
            entered.add(key)
            missing = [k for k in before[key] if k not in columns and k not in entered]
            if missing:
                stack += missing
                continue
            stack.pop()
            if key not in columns:
                columns[key] = 1 + max([columns[k] for k in before[key] if k in columns], default=-1)
    return columns
