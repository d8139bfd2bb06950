"""Reads the final schedules that libtpu writes of Pallas kernels: what a kernel costs in cycles, counted, not measured.

A TPU core runs one bundle of instructions a cycle, in the written order, unless it waits: for a transfer, or for a
matrix unit that is still busy. What a schedule tells is therefore a lower bound, and it repeats exactly.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.tpu.chips import Chip

BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:\w\w)?\s*:[\s>]*\{")
JUMP = re.compile(r"sbr\.rel .*?target = \$region(\d+)")
EXIT_TEST = re.compile(r"totalorder \S+, (\d+) /\* loop exit test")
Kind = Literal["whole", "loop", "branch"]
BEGIN = re.compile(r"Start(?:/End empty)? region (\d+)")


@dataclass(frozen=True)
class Counts:
    """What a stretch of a schedule holds."""

    bundles: float = 0
    vmatmul: float = 0
    vmatpush: float = 0
    dma: float = 0  # transfers begun
    spill: float = 0  # stores to and loads from spill slots
    matrix: float = 0  # instructions in matrix unit slots

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def times(self, factor: float) -> "Counts":
        """The counts of so many turns."""
        return Counts(*(n * factor for n in vars(self).values()))


@dataclass(frozen=True)
class Part:
    """A part of a schedule and the parts inside: the whole, a loop, or a branch that a jump passes over at times.

    `own` is what stands in no part inside. `trips` are a loop's as the schedule tells, None where they are dynamic;
    the loop over a grid of fixed size makes two turns more than the grid has steps.
    """

    kind: Kind
    own: Counts
    inner: tuple["Part", ...] = ()
    trips: int | None = None

    def all(self) -> Counts:
        """Everything once."""
        return sum((part.all() for part in self.inner), start=self.own)

    @property
    def products(self) -> list["Part"]:
        """The branches inside that hold matrix products, in order."""
        found = []
        for part in self.inner:
            if part.kind == "branch" and part.all().vmatmul:
                found.append(part)
            found += part.products
        return found

    def turn(self, trips: Sequence[float] = (), shares: Sequence[float] | None = None) -> Counts:
        """One turn with what is inside.

        `trips` are those of the dynamic loops inside, in order. `shares` says of each branch with matrix products, in
        order, how often a turn takes it; without it, and for the other branches, always. Raises ValueError where there
        are more or fewer.
        """
        left, parts = list(trips), None if shares is None else list(shares)
        total = self._turn(left, parts)
        if left or parts:
            raise ValueError(f"{len(left)} trip counts and {len(parts or [])} shares belong to nothing")
        return total

    def _turn(self, trips: list[float], shares: list[float] | None) -> Counts:
        total = self.own
        for part in self.inner:
            often = 1.0
            if part.kind == "loop":
                if part.trips is None and not trips:
                    raise ValueError("a loop inside has a dynamic trip count: say how often it runs")
                often = trips.pop(0) if part.trips is None else part.trips
            elif shares is not None and part.all().vmatmul:
                if not shares:
                    raise ValueError("a branch inside has matrix products: say how often it is taken")
                often = shares.pop(0)
            total += part._turn(trips, shares).times(often)
        return total


@dataclass(frozen=True)
class Schedule:
    """A kernel's final schedule."""

    whole: Part
    matrix_slots: int  # a bundle's

    @property
    def main(self) -> Part:
        """The loop over the grid: the outer one with most bundles. Raises ValueError where there is none."""
        loops = [part for part in self.whole.inner if part.kind == "loop"]
        if not loops:
            loops = [part for branch in self.whole.inner for part in branch.inner if part.kind == "loop"]
        if not loops:
            raise ValueError("the kernel has no loop: its grid has one step")
        return max(loops, key=lambda part: part.all().bundles)


def part_of(fields: dict[str, Any]) -> Part:
    """A part from what `dataclasses.asdict` made of it."""
    inner = tuple(part_of(part) for part in fields["inner"])
    return Part(fields["kind"], Counts(**fields["own"]), inner, fields["trips"])


def cycles(counts: Counts, chip: Chip) -> float:
    """Cycles one core needs at least: a bundle each, and the matrix units' time for what is sent through them."""
    return max(counts.bundles, counts.vmatmul * chip.cycles_per_vmatmul / chip.mxus)


@dataclass(frozen=True)
class _Bundle:
    text: str
    matrix: int

    def counts(self) -> Counts:
        def found(pattern: str) -> int:
            return len(re.findall(pattern, self.text))

        transfers, spills = found(r"= dma\.\w+_to_"), found(r"_spill\]")
        return Counts(1, found("= vmatmul"), found("= vmatpush"), transfers, spills, self.matrix)


def parse(bundles: str, utilization: str, delay: int) -> Schedule:
    """A schedule from the text of `*-final_bundles.txt` and of `*final_hlo-static-per-bundle-utilization.txt`.

    `delay` bundles after a jump still run. Raises ValueError where they do not belong together or hold no schedule.
    """
    slots, used = _matrix_use(utilization)
    lines = [line for line in bundles.splitlines() if BUNDLE.match(line)]
    if not lines or len(lines) != len(used):
        raise ValueError(f"{len(lines)} bundles but the use of slots of {len(used)}")
    found = [_Bundle(line, matrix) for line, matrix in zip(lines, used)]
    return Schedule(_read(found, _spans(found, delay), (0, len(found)), "whole"), slots)


def _matrix_use(utilization: str) -> tuple[int, list[int]]:
    """(matrix unit slots of a bundle, those each bundle uses)."""
    head, _, body = utilization.partition("== UTILIZATION:")
    names, capacities = head.strip().splitlines()[-2:]
    column = [name.strip() for name in names.split(",")].index("MXU")
    return int(capacities.split()[column]), [int(row.split()[column]) for row in body.strip().splitlines()]


def _jumps(bundles: list[_Bundle]) -> Iterator[tuple[int, int]]:
    """(from, to) of every jump, as places in the list."""
    begins = {int(n): place for place, bundle in enumerate(bundles) for n in BEGIN.findall(bundle.text)}
    for place, bundle in enumerate(bundles):
        for target in JUMP.findall(bundle.text):
            if int(target) in begins:
                yield place, begins[int(target)]


def _spans(bundles: list[_Bundle], delay: int) -> list[tuple[int, int, Kind]]:
    """(first, end, kind) of every loop and branch, outer before inner; they lie within each other or apart."""
    jumps = list(_jumps(bundles))
    loops = {start: max(at for at, to in jumps if to == start) + 1 + delay for at, start in jumps if start <= at}
    # A branch that ends with a loop ends with what runs while that loop jumps back.
    ends = {(at + 1 + delay, max([to, *(z for a, z in loops.items() if at < a < to < z)])) for at, to in jumps}
    branches = sorted((span for span in ends if span[0] < span[1]), key=lambda span: span[0] - span[1])
    # The longest jump in an outer loop passes over its whole body, in the first and last turns of its pipeline.
    for first, last in loops.items():
        if not any(a < first < z for a, z in loops.items()):
            body = next(((a, z) for a, z in branches if first <= a and z <= last), None)
            branches = [span for span in branches if span != body]
    spans: list[tuple[int, int, Kind]] = []
    spans.extend((start, end, "loop") for start, end in loops.items())
    spans.extend((first, end, "branch") for first, end in branches)
    spans.sort(key=lambda span: (span[0], -span[1], span[2] == "branch"))
    kept: list[tuple[int, int, Kind]] = []
    for first, end, kind in spans:
        if not any(a < first < z < end or (a, z) == (first, end) for a, z, _ in kept):
            kept.append((first, end, kind))
    return kept


def _read(bundles: list[_Bundle], spans: list[tuple[int, int, Kind]], part: tuple[int, int], kind: Kind) -> Part:
    """Bundles `part[0]` to `part[1]` with the spans inside."""
    own, inner, trips, place = Counts(), [], None, part[0]
    while place < part[1]:
        span = next((span for span in spans if span[0] == place), None)
        if span is not None:
            within = spans[spans.index(span) + 1 :]
            inner.append(_read(bundles, within, span[:2], span[2]))
            place = span[1]
            continue
        own += bundles[place].counts()
        if match := EXIT_TEST.search(bundles[place].text):
            trips = int(match[1])
        place += 1
    return Part(kind, own, tuple(inner), trips if kind == "loop" else None)


def read_dump(folder: Path, kernels: Sequence[str], delay: int) -> dict[str, Schedule]:
    """Schedules of kernels by name, from the files libtpu wrote. Raises ValueError where one is missing, or two are."""
    found = {}
    for name in kernels:
        files = [
            f
            for f in folder.iterdir()
            if re.fullmatch(rf"\d+-(?:(?:transpose|jvp)_)*{name}_*(\.\d+)?-\d+-final_bundles\.txt", f.name)
        ]
        if len(files) != 1:
            raise ValueError(f"{len(files)} schedules of the kernel {name} were written, not 1")
        prefix = re.sub(r"-\d+-final_bundles\.txt$", "", files[0].name)
        pattern = re.escape(prefix) + r"-\d+-final_hlo-static-per-bundle-utilization\.txt"
        (use,) = [f for f in folder.iterdir() if re.fullmatch(pattern, f.name)]
        found[name] = parse(files[0].read_text(), use.read_text(), delay)
    return found
