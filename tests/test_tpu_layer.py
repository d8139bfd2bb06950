"""Bounds of operations, and the arithmetic of what one layer's kernels move."""

import numpy as np
import pytest

from benchmarks.tpu.bound import Term, Turns, dynamic_grid, static_grid, total
from benchmarks.tpu.chips import CHIPS
from benchmarks.tpu.layer import CHOSEN, EXPERT_HIDDEN, EXPERTS, HIDDEN, RANK, Step, experts, grouping, lora, routes
from benchmarks.tpu.schedule import Counts, Part, Schedule

CHIP = CHIPS["v5e"]


def schedule(trips: int | None = 10) -> Schedule:
    """A grid whose step takes 100 bundles, and 40 and 60 more in two branches with products."""
    branches = tuple(Part("branch", Counts(bundles=n, vmatmul=1)) for n in (40, 60))
    grid = Part("loop", Counts(bundles=100), branches, trips)
    return Schedule(Part("whole", Counts(bundles=7), (grid,)), 4)


def test_turns_of_grids():
    assert static_grid(schedule(), [1, 1]) == Turns(8, Counts(200, 2), Counts(7), 4)
    assert static_grid(schedule(), [0.5, 0.5]).turn == Counts(150, 1)
    assert static_grid(schedule(), []).turn == Counts(200, 2)  # other branches than expected: all of them
    assert dynamic_grid(schedule(None), 3, [1, 1]).cycles(CHIP) == 3 * 200 + 7
    with pytest.raises(ValueError, match="dynamic"):
        static_grid(schedule(None), [])


def test_a_bound_is_the_longer_of_moving_and_computing():
    moved = Term("moved", bytes=CHIP.bandwidth)
    product = Term("product", bytes=0, flops=2 * CHIP.peak)
    kernel = Term("kernel", bytes=0, turns=Turns(CHIP.clock / 100, Counts(bundles=100), Counts(), 4))
    assert moved.seconds(CHIP) == pytest.approx(1)
    assert kernel.seconds(CHIP) == pytest.approx(1)
    assert total([moved, product, kernel], CHIP) == pytest.approx(4)


def test_peaks_are_the_published_ones():
    published = {"v4": 275e12 / 2, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12, "tpu7x": 2307e12 / 2}
    for name, peak in published.items():
        assert CHIPS[name].peak == pytest.approx(peak, rel=0.01), name


def test_routes_are_distinct_and_repeat():
    step = Step(64, 64, True)
    ids = routes(step)
    assert ids.shape == (64, CHOSEN)
    assert all(len(set(row)) == CHOSEN for row in ids.tolist())
    assert ids.max() < EXPERTS
    np.testing.assert_array_equal(ids, routes(step))


def test_what_lora_moves():
    decode, prefill = Step(64, 64, True), Step(4096, 2, False)
    wide = lora(decode, "k", (HIDDEN, 512), schedule())
    assert wide.bytes == 64 * (2 * HIDDEN + 2 * RANK + 4 * 512) + 64 * 2 * RANK * (HIDDEN + 512)
    # Two adapters' factors once each where one block holds an axis.
    assert lora(prefill, "k", (HIDDEN, 512), schedule()).bytes == 4096 * (2 * HIDDEN + 2 * RANK + 4 * 512) + (
        2 * 2 * RANK * (HIDDEN + 512)
    )
    assert lora(decode, "expand", (0, HIDDEN), schedule()).bytes == 64 * (2 * RANK + 4 * HIDDEN + 2 * RANK * HIDDEN)


def test_what_the_grouping_comes_to():
    base, mixed = (grouping(Step(256, 2, False), adapters) for adapters in (False, True))
    assert base.rows == mixed.rows == 128 * EXPERTS  # few rows: a tile for each expert
    assert base.places == mixed.places  # adapters share tiles
    assert base.runs.sum() == 0
    assert set(mixed.runs.tolist()) <= {1, 2}
    assert np.sum(mixed.runs) >= 2 * np.sum(mixed.runs == 2)


def test_turns_of_the_experts_kernels():
    step = Step(256, 2, False)
    found = grouping(step, True)

    def loop(bundles: int, *inner: Part) -> Part:
        return Part("loop", Counts(bundles=bundles), inner)

    # a's loop over groups, its copies and its product for one run and for several; the expert's; b's loop.
    first, ask, several = loop(0), loop(1), Part("branch", Counts(bundles=100, vmatmul=1))
    one, live = (Part("branch", Counts(bundles=n, vmatmul=1)) for n in (10, 1000))
    parts = (first, loop(0, ask, ask, one, several), live, first, loop(0, ask, ask, loop(10000)))
    kernel = Schedule(Part("whole", Counts(), (Part("loop", Counts(), parts, 10),)), 4)
    gate, _, down = experts(step, "per_expert", {"prefill/up per_expert": kernel, "prefill/down per_expert": kernel})
    assert gate.turns
    assert down.turns
    runs, tiles = found.runs, found.places // 128
    assert gate.turns.steps == tiles
    expected = 10 * np.sum(runs == 1) + 100 * np.sum(runs > 1) + 1000 * runs.size + 10004 * runs.sum()
    assert gate.turns.turn.bundles * tiles == pytest.approx(expected)
    assert gate.bytes - down.bytes == pytest.approx(2 * (HIDDEN - EXPERT_HIDDEN) * (found.rows - found.places))
