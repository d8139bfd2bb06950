"""The table of methods: a row each, where a method has no place, sizes as people say them."""

import pytest

from pefx.adapters.methods.table import METHODS
from pefx.config import AdapterSpec
from pefx.planning.populations import render_population, shown
from pefx.presets import PRESETS


def test_every_method_has_a_row():
    text = render_population(PRESETS["qwen3-30b-a3b"], AdapterSpec(rank=1))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert set(rows) == set(METHODS)
    assert "52,740,096" in rows["lora"]
    assert "105 TB" in rows["lora"]
    assert "experts.down_proj, experts.gate_proj, experts.up_proj" in rows["dora"]
    assert "experts" not in rows["vera"]
    assert all(told in rows["delta_state"] for told in (" 3,072 ", " 6.14 kB ", " 6.14 GB "))  # 48 layers of 8 x 8
    # "On the Scaling of PEFT": 26 MB a million.
    assert all(told in rows["tiny_lora"] for told in (" 13 ", " 26 B ", " 26 MB "))


@pytest.mark.parametrize(("size", "text"), [(7, "7 B"), (1500, "1.5 kB"), (4.128e12, "4.13 TB"), (999, "999 B")])
def test_sizes(size, text):
    assert shown(size) == text
