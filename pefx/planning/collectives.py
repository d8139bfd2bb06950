"""What devices send each other in a compiled program, read from its text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator

Traffic = dict[str, float]  # bytes that a device sends, by operation
BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "bf16": 2, "f16": 2}  # others: 4
CALL = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COLLECTIVE = re.compile(
    r" = ([^=\n]*?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)"
    r"(?:-start)?\("
)
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")


def traffic(text: str) -> Traffic:
    """Bytes a device sends in one run of a program, by kind; what a loop does counts as often as it turns.

    A ring is assumed: of n devices each sends (n - 1) / n of what it gathers or scatters, twice that of what is added.
    """
    bodies = dict(_computations(text))
    entry = next((name for name in bodies if f"ENTRY %{name} " in text or f"ENTRY {name} " in text), None)
    turns: dict[str, float] = defaultdict(float)
    if entry is not None:
        _count(entry, 1.0, bodies, turns)
    sent: Traffic = defaultdict(float)
    for name, lines in bodies.items():
        for line in lines:
            found = COLLECTIVE.search(line)
            if found is None or not turns[name]:
                continue
            sent[found[2]] += turns[name] * _sent(line, found[1], found[2])
    return dict(sent)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each computation's name and lines."""
    name, lines = "", []
    for line in text.splitlines():
        if not line.startswith(" ") and line.rstrip().endswith("{") and "(" in line:
            name, lines = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%"), []
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _count(name: str, times: float, bodies: dict[str, list[str]], turns: dict[str, float]) -> None:
    """Add to `turns` how often a computation and all it calls run."""
    turns[name] += times
    for line in bodies.get(name, ()):
        if " while(" not in line and " call(" not in line and " conditional(" not in line:
            continue
        found = TRIPS.search(line)
        each = float(found[1]) if found and " while(" in line else 1.0
        for called in CALL.findall(line):
            for one in called.replace("%", "").split(","):
                _count(one.strip(), times * each, bodies, turns)


def _sent(line: str, result: str, kind: str) -> float:
    """Bytes a device sends for one collective whose result is written `result`."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * BYTES.get(dtype, 4) for dtype, dims in SHAPE.findall(result)
    ]
    size = max(sizes, default=0)
    found = GROUPS.search(line)
    devices = 2 if found is None else len(found[1].split(",")) if found[1] else int(found[3])
    share = (devices - 1) / devices if devices else 0.0
    if kind == "all-reduce":
        return 2 * size * share
    if kind == "reduce-scatter":  # its result is one device's part
        return float(size * (devices - 1))
    return float(size) if kind == "collective-permute" else size * share
