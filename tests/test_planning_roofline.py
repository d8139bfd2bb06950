"""What a token meets of a base and of an adapter."""

import jax
import pytest

from pefx.adapters.bank import empty_bank
from pefx.config import AdapterSpec
from pefx.planning.roofline import active_weights, adapter_weights, attended
from pefx.presets import PRESETS
from tests.planning_small import CONFIG


def test_what_is_met_by_a_token() -> None:
    model = PRESETS["qwen3-30b-a3b"]
    assert active_weights(model) == pytest.approx(3.0e9, rel=0.05)  # A3B, without the embedding
    assert active_weights(PRESETS["kimi-k2"]) == pytest.approx(32e9, rel=0.05)
    assert attended(model) == 2 * 48 * 32 * 256


def test_adapters_count_what_a_token_meets_of_them() -> None:
    model = PRESETS["qwen3-30b-a3b"]
    spec = AdapterSpec(rank=1, targets=("experts.up_proj",))
    bank = jax.eval_shape(lambda: empty_bank(model, spec, 3))
    padded = 8  # the rank a bank is allocated at
    assert adapter_weights(CONFIG, model, bank) == model.layers * 8 * padded * (model.hidden + model.expert_hidden)
