"""Lower bounds of time: what has to be computed against what has to be moved."""

from dataclasses import dataclass

from benchmarks.tpu.chips import Chip
from benchmarks.tpu.schedule import Counts, Schedule, cycles


@dataclass(frozen=True)
class Turns:
    """How often a kernel runs through its schedule: `steps` turns on average like `turn`, and `once` around them."""

    steps: float
    turn: Counts
    once: Counts
    matrix_slots: int

    def cycles(self, chip: Chip) -> float:
        """One core's, for the whole call."""
        return self.steps * cycles(self.turn, chip) + self.once.bundles

    @property
    def matrix_use(self) -> float:
        """Share of the matrix units' slots that a turn fills."""
        return self.turn.matrix / (self.turn.bundles * self.matrix_slots) if self.turn.bundles else 0.0


@dataclass(frozen=True)
class Term:
    """One operation of a layer on one chip.

    `turns` are of a kernel's schedule; `flops` are of an XLA product, which uses all cores at their peak. `bytes` go to
    or from HBM.
    """

    name: str
    bytes: float
    flops: float = 0.0
    turns: Turns | None = None

    def computing(self, chip: Chip) -> float:
        """Seconds of computing, were all operands there."""
        counted = self.turns.cycles(chip) / chip.clock if self.turns else 0.0
        return max(counted, self.flops / chip.peak)

    def moving(self, chip: Chip) -> float:
        """Seconds of moving bytes at full bandwidth."""
        return self.bytes / chip.bandwidth

    def seconds(self, chip: Chip) -> float:
        """The bound: computing and moving overlap perfectly within an operation, operations follow each other."""
        return max(self.computing(chip), self.moving(chip))


def total(terms: list[Term], chip: Chip) -> float:
    """Seconds of operations that follow each other."""
    return sum(term.seconds(chip) for term in terms)


def static_grid(schedule: Schedule, shares: list[float]) -> Turns:
    """Turns of a kernel whose grid has a fixed size. `shares` are how often a step takes the branches that multiply,
    where it has as many such branches; every other branch is counted as taken.
    """
    body = schedule.main
    if body.trips is None:
        raise ValueError("the grid's size is dynamic")
    return dynamic_grid(schedule, body.trips - 2, shares)


def dynamic_grid(schedule: Schedule, steps: float, shares: list[float], trips: list[float] | None = None) -> Turns:
    """Turns of a kernel whose grid makes so many steps; `trips` of the dynamic loops inside a step."""
    body = schedule.main
    turn = body.turn(trips or [], shares if len(body.products) == len(shares) else None)
    outside = Counts(bundles=schedule.whole.all().bundles - body.all().bundles)
    return Turns(steps, turn, outside, schedule.matrix_slots)
