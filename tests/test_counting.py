"""Numbers that adapters learn on published bases, against what their papers say."""

import pytest

from pefx.adapters.methods.counting import parameters, stored_bytes
from pefx.config import AdapterSpec
from pefx.presets import PRESETS


@pytest.mark.parametrize(
    ("base", "spec", "size"),
    [  # "On the Scaling of PEFT", bytes of a million users, 16 bits a number, less the six zeros
        ("qwen3-0.6b", AdapterSpec(rank=1), 1.3e6),
        ("qwen3-4b", AdapterSpec(rank=1), 4.1e6),
        ("qwen3-30b-a3b", AdapterSpec(rank=1), 106e6),
        ("qwen3-4b", AdapterSpec(method="lora_xs", rank=16), 129e3),
    ],
)
def test_bytes_are_the_papers(base, spec, size):
    assert stored_bytes(PRESETS[base], spec) == pytest.approx(size, rel=0.03)


def test_methods_have_the_numbers_of_their_formulas():
    model = PRESETS["qwen3-4b"]
    matrices = 36 * 7
    assert parameters(model, AdapterSpec(method="lora_xs", rank=5)) == matrices * 25
    assert parameters(model, AdapterSpec(method="tiny_lora", rank=2, units=3)) == matrices * 3
    assert parameters(model, AdapterSpec(method="tiny_lora", rank=2, units=1, tied=True)) == 7
    for units in (1, 13):
        assert parameters(model, AdapterSpec(method="tiny_lora", rank=2, units=units, tied="all")) == units
    one = ("q_proj",)
    reads, writes = 2560, 32 * 128
    assert parameters(model, AdapterSpec(rank=4, targets=one)) == 36 * 4 * (reads + writes)
    assert parameters(model, AdapterSpec(rank=4, targets=one, frozen="a")) == 36 * 4 * writes
    assert parameters(model, AdapterSpec(method="dora", rank=4, targets=one)) == 36 * (4 * (reads + writes) + writes)
    assert parameters(model, AdapterSpec(method="vera", rank=4, targets=one)) == 36 * (4 + writes)
    assert parameters(model, AdapterSpec(method="ia3", targets=one)) == 36 * writes


def test_memories_have_the_numbers_of_their_paper():
    model, spec = PRESETS["qwen3-4b"], AdapterSpec("delta_mem", 8, 16.0, ("memory",))
    assert parameters(model, spec) == 4_866_336
    state = AdapterSpec("delta_state", 8, 16.0, ("memory",), over="shared/memory@1")
    assert stored_bytes(model, state) == 2 * 2_304
    assert parameters(model, state) == 0
