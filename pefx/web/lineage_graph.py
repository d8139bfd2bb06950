"""A family of revisions as SVG: lanes of policies, revisions joined to what they came from, names of those named."""

from collections import defaultdict
from dataclasses import dataclass

from markupsafe import Markup

from pefx.store.views import Lineage
from pefx.web.lineage_layout import Layout, Mark, lay_out
from pefx.web.svg import element, shortened
from pefx.web.wording import policy_address, revision_address

LETTER = 6.8  # the width of one, about
NODE = 22.0
GAP = 22.0  # between two nodes of a lane
BARE, NAMED = 34.0, 52.0  # heights of lanes; the second has room for aliases above its nodes
EDGE = 14.0
LONGEST_NAME, LONGEST_LABEL = 32, 30


@dataclass(frozen=True)
class Graph:
    """Two pictures of one height: names of lanes, which stay, and the graph, which may scroll."""

    names: Markup
    graph: Markup
    revisions: int
    hidden: int


@dataclass(frozen=True)
class _Places:
    x: dict[int, float]  # centres of columns
    y: tuple[float, ...]  # centres of lanes
    top: tuple[float, ...]
    height: float
    width: float


def draw_lineage(lineage: Lineage, whole: bool = False) -> Graph:
    """`lineage` drawn, its policy's lane in the accent colour; `whole`: no run of revisions is folded."""
    layout = lay_out(lineage, whole)
    places = _places(layout)
    marks = {mark.key: mark for mark in layout.marks}
    current = layout.lanes.index(lineage.policy) if lineage.policy in layout.lanes else -1
    edges = [_edge(mark, marks, places, current) for mark in layout.marks]
    nodes = [_node(mark, places, current) for mark in layout.marks]
    said = f"{len(lineage.nodes)} revisions of {len(layout.lanes)} policies"
    graph = element(
        "svg",
        element("title", f"Lineage of {lineage.policy}: {said}"),
        _band(current, places, "100%"),
        *edges,
        *nodes,
        class_="lineage",
        role="img",
        width=places.width,
        height=places.height,  # no viewBox: where there is more room the band goes on, and nothing grows
    )
    hidden = sum(mark.hidden for mark in layout.marks)
    return Graph(_names(layout, places, current), graph, len(lineage.nodes), hidden)


def _names(layout: Layout, places: _Places, current: int) -> Markup:
    shown = [shortened(name, LONGEST_NAME) for name in layout.lanes]
    width = 24.0 + 8 * max((len(name) for name in shown), default=0)
    texts = [
        element(
            "a",
            element("title", name),
            element("text", short, x=12, y=places.y[lane] + 4, class_="lane current" if lane == current else "lane"),
            href=policy_address(name),
        )
        for lane, (name, short) in enumerate(zip(layout.lanes, shown, strict=True))
    ]
    box = f"0 0 {width:.0f} {places.height:.0f}"
    return element(
        "svg",
        _band(current, places, width),
        *texts,
        class_="lineage lanes",
        width=width,
        height=places.height,
        viewBox=box,
    )


def _band(lane: int, places: _Places, width: float | str) -> Markup:
    if lane < 0:
        return Markup("")
    bottom = places.top[lane + 1] if lane + 1 < len(places.top) else places.height
    return element("rect", class_="band", x=0, y=places.top[lane], width=width, height=bottom - places.top[lane])


def _label(mark: Mark) -> str:
    return f"⋯ {mark.hidden} more" if mark.hidden else str(mark.number)


def _node_width(mark: Mark) -> float:
    return max(NODE, 10 + LETTER * len(_label(mark)))


def _alias_label(mark: Mark) -> str:
    return shortened(" · ".join(mark.node.aliases), LONGEST_LABEL)


def _alias_width(mark: Mark) -> float:
    return 12 + LETTER * len(_alias_label(mark)) if mark.node.aliases else 0.0


def _places(layout: Layout) -> _Places:
    """Columns as narrow as nodes and labels of one lane allow side by side; lanes as high as their labels."""
    columns: dict[int, list[Mark]] = defaultdict(list)
    for mark in layout.marks:
        columns[mark.column].append(mark)
    x: dict[int, float] = {}
    node_end: dict[int, float] = {}
    label_end: dict[int, float] = {}
    end = 0.0
    for column, marks in sorted(columns.items()):
        least = [x[column - 1] + NODE if column - 1 in x else EDGE + NODE / 2]
        for mark in marks:
            half, label = _node_width(mark) / 2, _alias_width(mark) / 2
            least += [node_end.get(mark.lane, EDGE - GAP) + GAP + half, label_end.get(mark.lane, 0.0) + 6 + label]
        x[column] = max(least)
        for mark in marks:
            node_end[mark.lane] = x[column] + _node_width(mark) / 2
            if mark.node.aliases:
                label_end[mark.lane] = x[column] + _alias_width(mark) / 2
            end = max(end, x[column] + max(_node_width(mark), _alias_width(mark)) / 2)
    named = {mark.lane for mark in layout.marks if mark.node.aliases}
    y, top, at = [], [], 0.0
    for lane in range(len(layout.lanes)):
        height = NAMED if lane in named else BARE
        top.append(at)
        y.append(at + height - BARE / 2)
        at += height
    return _Places(x, tuple(y), tuple(top), at + 4, end + EDGE)


def _edge(mark: Mark, marks: dict[str, Mark], places: _Places, current: int) -> Markup:
    x, y = places.x[mark.column], places.y[mark.lane]
    if mark.parent is None:
        return element("path", class_="edge lost", d=f"M{x - 20:.1f} {y:.1f}H{x:.1f}") if mark.lost else Markup("")
    parent = marks[mark.parent]
    x0, y0 = places.x[parent.column], places.y[parent.lane]
    if mark.lane != parent.lane:
        bend = 10 if y > y0 else -10
        way = f"M{x0:.1f} {y0:.1f}V{y - bend:.1f}Q{x0:.1f} {y:.1f} {x0 + 10:.1f} {y:.1f}H{x:.1f}"
    elif any(m.lane == mark.lane and parent.column < m.column < mark.column for m in marks.values()):
        way = f"M{x0:.1f} {y:.1f}C{x0 + 12:.1f} {y + 24:.1f} {x - 12:.1f} {y + 24:.1f} {x:.1f} {y:.1f}"
    else:
        way = f"M{x0:.1f} {y:.1f}H{x:.1f}"
    return element("path", class_="edge current" if mark.lane == current else "edge", d=way)


def _node(mark: Mark, places: _Places, current: int) -> Markup:
    x, y, width = places.x[mark.column], places.y[mark.lane], _node_width(mark)
    kind = " ".join(
        [
            "node",
            *(["current"] if mark.lane == current else []),
            *(["folded"] if mark.hidden else [f"stage-{mark.node.stage}"]),
        ]
    )
    if mark.hidden:
        name = mark.key.rsplit("@", 1)[0]
        said = f"{name}: revisions {mark.number} to {mark.number + mark.hidden - 1}"
        address = f"{policy_address(name)}?whole=1#lineage"
    else:
        aliases = f", {', '.join(mark.node.aliases)}" if mark.node.aliases else ""
        said = f"{mark.key}, step {mark.node.step}, {mark.node.stage}{aliases}, {mark.node.created}"
        address = revision_address(mark.key)
    box = element("rect", x=x - width / 2, y=y - NODE / 2, width=width, height=NODE, rx=NODE / 2)
    text = element("text", _label(mark), x=x, y=y + 4, text_anchor="middle")
    parts = [element("title", said), box, text]
    if mark.node.aliases:
        wide = _alias_width(mark)
        parts.append(element("rect", class_="pill", x=x - wide / 2, y=y - 33, width=wide, height=16, rx=8))
        parts.append(element("text", _alias_label(mark), class_="alias", x=x, y=y - 21.5, text_anchor="middle"))
    return element("a", *parts, href=address, class_=kind)
