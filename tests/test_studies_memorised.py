"""Memories, cells of equal size, and where recall falls."""

import math

import pytest

from pefx.config import ModelConfig, TrainConfig
from pefx.settings import read_file
from pefx.sweeping.intervals import interval
from studies.memorised.bases import WHOLE, WIDTHS, heldout_loss, shaped
from studies.memorised.cells import CELLS, RANKS, Cell
from studies.memorised.facts import ADJACENCY, CORRECTION, POSITION, memory
from studies.memorised.learners import STEPS, Learner
from studies.memorised.lines import lines
from studies.memorised.measured import Load, Measured, falls_through


def model(width: int) -> ModelConfig:
    pretrain = shaped(width, WHOLE).pretrain
    assert pretrain is not None
    return pretrain.model


def test_the_corrected_name_counts() -> None:
    found = memory(8, 0)
    assert len(set(found.names) | set(found.before.values())) == 10
    by_kind = {kind: [one for one in found.questions if one.kind == kind] for kind in (POSITION, ADJACENCY, CORRECTION)}
    assert {kind: len(own) for kind, own in by_kind.items()} == {POSITION: 6, ADJACENCY: 7, CORRECTION: 2}
    for one in by_kind[CORRECTION]:
        slot = int(one.prompt[:-1])
        assert one.answer == found.names[slot] != found.before[slot]
    first, second = found.names[:2]
    assert by_kind[ADJACENCY][0].prompt == f"{first}>"
    assert by_kind[ADJACENCY][0].answer == second
    assert found.notes.count("\n") == 8 + 2
    assert found.notes.endswith(f"{found.names[max(found.before)]}\n")


def test_a_memory_is_a_function_of_its_seed() -> None:
    assert memory(16, 3) == memory(16, 3) != memory(16, 4)


@pytest.mark.parametrize("size", RANKS)
def test_adapters_of_a_size_differ_by_little(size: str) -> None:
    numbers = [Cell(placement, size).parameters(model(32)) for placement in RANKS[size]]
    assert max(numbers) / min(numbers) <= 1.12


def test_the_widest_base_is_the_shipped_one() -> None:
    assert shaped(WIDTHS[-1], WHOLE) == read_file("configs/base_tasks.py", TrainConfig)
    assert heldout_loss(WIDTHS[-1]) == 0.8481


def test_a_base_is_narrower_in_all_it_has() -> None:
    narrow, *_, wide = (model(width) for width in WIDTHS)
    ratio = wide.hidden / narrow.hidden
    for field in ("dense_hidden", "expert_hidden"):
        assert getattr(wide, field) / getattr(narrow, field) == ratio
    assert wide.heads * wide.head_size / (narrow.heads * narrow.head_size) == ratio
    assert wide.kv_heads * wide.head_size / (narrow.kv_heads * narrow.head_size) == ratio
    assert wide.layers == narrow.layers
    assert wide.experts == narrow.experts


def test_a_learner_is_a_user_with_its_own_memory(tmp_path) -> None:
    one = Learner(CELLS[0], 8, 1, 0.01, times=2)
    user = one.user(tmp_path)
    assert user.name == "MLP-tiny-8-lr0.01-x2/1"
    assert user.seed == 1
    assert user.steps == 2 * STEPS[8]
    assert user.train == user.heldout == str(tmp_path / "8-1.jsonl")
    assert len((tmp_path / "8-1.jsonl").read_text().splitlines()) == len(memory(8, 1).questions)


def test_where_recall_falls_through_a_half() -> None:
    assert falls_through([0.01, 0.1, 1.0], [1.0, 1.0, 0.0]) == pytest.approx(math.sqrt(0.1))
    assert falls_through([0.01, 0.1, 1.0], [1.0, 0.9, 0.8]) is None
    # A failure at the smallest load is not where it falls.
    assert falls_through([0.01, 0.1, 1.0, 10.0], [1.0, 0.4, 0.9, 0.1]) == pytest.approx(10**0.5)


def test_halves_are_read_seed_by_seed() -> None:
    loads = [
        Load(2, [10, 10], [{"all": 1.0}, {"all": 1.0}], [0.0, 0.0]),
        Load(8, [1000, 1000], [{"all": 0.0, CORRECTION: 0.5}, {"all": 0.0, CORRECTION: 0.0}], [2.0, 2.0]),
    ]
    found = Measured(CELLS[0], 100, loads)
    assert found.half is not None
    assert found.half.mean == pytest.approx(1.0)
    assert [place for place, _ in found.line] == [0.1, 10.0]
    assert loads[1].of(CORRECTION) == "0.25"
    assert loads[0].of(CORRECTION) == ""
    assert found.where == "1 [1, 1]"
    failed = Load(2, [10, 10], [{"all": 1.0}, {"all": 0.0}], [0.0, 0.0])
    assert Measured(CELLS[0], 100, [failed, loads[1]]).where == "1, below 0.1 for 1 of 2"
    above = Measured(CELLS[0], 100, loads[:1])
    assert above.where == "above 0.1 for 2 of 2"
    assert above.halves == [None, None]
    assert above.half is None


def test_lines_are_drawn(tmp_path) -> None:
    found = interval([0.1, 0.2, 0.3])
    panel = {"MLP": [(0.01, found), (1.0, found)], "all": [(0.01, found)]}
    lines({"small": panel, "large": panel}, tmp_path / "lines.png", "Lines", "tokens", "recall", 0.5)
    assert (tmp_path / "lines.png").stat().st_size > 5_000
