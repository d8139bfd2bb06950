"""Published shapes: as many parameters as was published, and what their config.json is made of."""

import json
from pathlib import Path

import jax
import pytest

from pefx.config import PretrainConfig, TrainConfig
from pefx.families.config_json import config_json, read_config
from pefx.model import abstract_base
from pefx.presets import PRESETS
from pefx.rules import broken_rules

# In 10^9, without layers that predict more than one token: of the 358.3 in GLM-4.5's files the last layer has 5.5. The
# report on Kimi K2 says 1.04 10^12; its config.json makes 1.026.
PUBLISHED = {
    "qwen3-0.6b": 0.596,
    "qwen3-4b": 4.022,
    "qwen3-8b": 8.191,
    "qwen3-30b-a3b": 30.532,
    "qwen3-235b-a22b": 235.094,
    "moonlight-16b-a3b": 15.960,
    "deepseek-v3": 671.026,
    "kimi-k2": 1026.4,
    "glm-4.5": 352.8,
    "glm-5": 743.9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_base(PRESETS[name])))
    assert abs(count / 1e9 / PUBLISHED[name] - 1) < 3e-4, count


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_breaks_no_rule_and_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    config = TrainConfig("n", "o", pretrain=PretrainConfig(PRESETS[name], "t", "a", "h", "e"))
    assert list(broken_rules(config)) == []
    (tmp_path / "config.json").write_text(json.dumps(config_json(PRESETS[name], "bfloat16")))
    assert read_config(tmp_path) == PRESETS[name]
