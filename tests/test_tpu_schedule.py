"""Schedules as libtpu writes them, read back: one of a small kernel, with what the reader looks at left in it."""

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.tpu.chips import CHIPS
from benchmarks.tpu.schedule import Counts, Part, cycles, parse, part_of

FOLDER = Path(__file__).parent / "goldens" / "schedule"
# A grid of 6 steps; in those after the second, a loop over a prefetched number of [8, 128] x [128, 128] products.
BUNDLES = (FOLDER / "nested-final_bundles.txt").read_text()
UTILIZATION = (FOLDER / "nested-utilization.txt").read_text()


def test_structure_of_a_kernel():
    schedule = parse(BUNDLES, UTILIZATION, delay=4)
    assert schedule.matrix_slots == 4
    assert schedule.whole.all().bundles == 104
    grid = schedule.main
    assert (grid.kind, grid.trips) == ("loop", 8)  # two turns more than steps
    (branch,) = grid.inner
    (unless_none,) = branch.inner
    (loop,) = unless_none.inner
    assert [part.kind for part in (branch, unless_none, loop)] == ["branch", "branch", "loop"]
    assert loop.trips is None
    assert loop.own == Counts(bundles=27, vmatmul=1, vmatpush=16, dma=0, spill=0, matrix=5)
    assert grid.own.dma == 3  # two blocks in, one out
    assert part_of(asdict(grid)) == grid


def test_a_turn_takes_trips_and_shares():
    grid = parse(BUNDLES, UTILIZATION, delay=4).main
    assert grid.turn(trips=[0]).vmatmul == 0
    assert grid.turn(trips=[3]).vmatmul == 3
    assert grid.turn(trips=[3]).bundles - grid.turn(trips=[2]).bundles == 27
    assert grid.turn(trips=[3], shares=[0.5, 1]).vmatmul == 1.5
    assert grid.turn(trips=[3], shares=[0, 1]).bundles == grid.own.bundles
    with pytest.raises(ValueError, match="dynamic trip count"):
        grid.turn()
    with pytest.raises(ValueError, match="belong to nothing"):
        grid.turn(trips=[1, 1])
    with pytest.raises(ValueError, match="how often it is taken"):
        grid.turn(trips=[1], shares=[1])


def test_cycles_are_bundles_or_the_time_of_the_matrix_units():
    chip = CHIPS["v5e"]
    assert cycles(Counts(bundles=100, vmatmul=20), chip) == 100
    assert cycles(Counts(bundles=50, vmatmul=20), chip) == 80


def test_files_that_do_not_belong_together():
    with pytest.raises(ValueError, match="bundles but the use of slots of"):
        parse(BUNDLES, UTILIZATION.rsplit("\n", 3)[0], delay=4)


def test_a_kernel_without_a_loop():
    text = "   0   :  {}\n  0x1   :  { %1 = vmatmul.f32.gmra.mxu0 %v1 }\n"
    schedule = parse(text, "== CAPACITY:\nMXU, XLU\n    4     3\n== UTILIZATION:\n0 0\n1 0\n", delay=4)
    assert schedule.whole == Part("whole", Counts(bundles=2, vmatmul=1, matrix=1))
    with pytest.raises(ValueError, match="no loop"):
        _ = schedule.main
