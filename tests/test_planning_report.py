"""A small base on a slice: what lies where, what fits, and what to change where it does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import AdapterSpec
from pefx.planning import abstract
from pefx.planning.report import Planned, advice, compare, picture, plan, render
from tests.planning_small import CONFIG, SMALL, needs_libtpu


@pytest.fixture(name="planned", scope="module")
def make_planned() -> Planned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(abstract.PRESETS, "small", SMALL)
        return plan(CONFIG)


@needs_libtpu
def test_both_steps_are_compiled_and_what_lies_where_is_told(planned: Planned, tmp_path: Path) -> None:
    assert planned.fits
    assert [step.step for step in planned.steps] == ["train", "serve"]
    assert planned.devices == 4
    experts = SMALL.layers * SMALL.experts * 3 * SMALL.hidden * SMALL.expert_hidden
    assert planned.held["base"] > experts * 2 // 4  # bfloat16, divided by expert and model
    assert planned.held["optimizer"] > 2 * planned.held["bank"] * 0.99
    for step in planned.steps:
        assert step.kernels > 0
        assert (step.traffic or {})["ragged-all-to-all"] > 0  # tokens travel to their experts
        assert (step.traffic or {})["all-reduce"] > 0  # partial sums of divided widths
    text = render(planned)
    for words in (
        "v5e:2x2",
        "1 x 2 x 2 (data, expert, model)",
        "keys and values",
        "adapters that fit",
        "tokens/s at most",
    ):
        assert words in text
    assert planned.more_adapters["train"] > 1000
    picture([planned, planned], tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert compare([planned, planned]).count("yes") == 2


@pytest.mark.slow
@needs_libtpu
def test_both_steps_are_compiled_with_memories(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(abstract.PRESETS, "small", SMALL)
    found = plan(replace(CONFIG, others=(AdapterSpec("delta_mem", 8, targets=("memory",), states=4),)))
    assert found.fits
    for step, before in zip(found.steps, planned.steps, strict=True):
        assert step.kernels > before.kernels


@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_to_change(planned: Planned) -> None:
    tight = replace(planned, steps=[replace(step, capacity=1 << 20) for step in planned.steps])
    assert not tight.fits
    words = "; ".join(advice(tight))
    assert "train needs" in words
    assert "GiB more than a device has" in words
    assert "most is held by the keys and values" in words
    assert "fewer sequences or a shorter context" in words
    heavy = replace(tight, held=tight.held | {"base": 1 << 40})
    assert "base-weights int8" in "; ".join(advice(heavy))
    failed = replace(
        planned, steps=[replace(planned.steps[0], temporary=20 << 30, capacity=16 << 30), planned.steps[1]]
    )
    assert not failed.fits
    assert "fewer tokens_per_user" in "; ".join(advice(failed))
    # A total is of everything: what is held is not counted twice.
    whole = replace(planned, steps=[replace(planned.steps[0], total=20 << 30, capacity=16 << 30), planned.steps[1]])
    assert "train needs 4.00 GiB more" in "; ".join(advice(whole))
