"""How a PEFT configuration is read: patterns, layers and targets as PEFT means them (refused: test_adapters_peft)."""

import json
from pathlib import Path

import pytest

from pefx.adapters.peft_config import PeftConfig, read_peft_config
from pefx.errors import PefxError

Q1 = "model.layers.1.self_attn.q_proj"
EXPERT = "model.layers.1.mlp.experts.0.gate_proj"
FUSED = "model.layers.1.mlp.experts.gate_up_proj"


def config(tmp_path: Path, **fields: object) -> PeftConfig:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **fields}))
    return read_peft_config(path)


@pytest.mark.parametrize(
    ("pattern", "rank"),
    [
        ({}, 4),
        ({"q_proj": 2}, 2),
        ({"proj": 2}, 4),  # no part of a word
        ({".*proj": 2}, 2),
        ({"layers.1.self_attn.q_proj": 2}, 2),
        ({"layers.0.self_attn.q_proj": 2}, 4),
        ({"self_attn": 2}, 4),  # not the end
        ({"^model.*q_proj": 2}, 2),
        ({r"layers\.[1-3]\..*q_proj": 2, "q_proj": 3}, 2),  # the first that matches
        ({"q_proj": 3, r"layers\.[1-3]\..*q_proj": 2}, 3),
        ({"k_proj|q_proj": 2}, 2),
    ],
)
def test_patterns_match_the_ends_of_names(pattern: dict[str, int], rank: int, tmp_path: Path) -> None:
    found = config(tmp_path, rank_pattern=pattern)
    assert found.rank_of(Q1) == rank
    assert found.scale_of(Q1) == 8 / rank
    assert config(tmp_path, alpha_pattern=pattern).scale_of(Q1) == (rank if rank != 4 else 8) / 4
    assert config(tmp_path, rank_pattern=pattern, use_rslora=True).scale_of(Q1) == 8 / rank**0.5


def test_parameters_are_matched_by_the_names_of_parameters(tmp_path: Path) -> None:
    dense = "model.layers.1.mlp.gate_proj"
    found = config(tmp_path, target_parameters=["mlp.gate_proj.weight"], rank_pattern={"gate_proj": 2})
    assert found.rank_of(dense) == 4
    found = config(tmp_path, target_parameters=["mlp.gate_proj.weight"], rank_pattern={"gate_proj.weight": 2})
    assert found.rank_of(dense) == 2
    assert config(tmp_path, rank_pattern={"experts.gate_up_proj": 2}).rank_of(FUSED) == 2


@pytest.mark.parametrize(
    ("fields", "targeted"),
    [
        ({"target_modules": ["q_proj"]}, {(Q1, 1), (Q1, 0)}),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 2]}, {(Q1, 1)}),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, {(Q1, 0)}),
        ({"target_modules": [Q1], "layers_to_transform": [5]}, {(Q1, 1), (Q1, 0)}),  # a whole name heeds no layers
        ({"target_modules": r".*\.q_proj"}, {(Q1, 1), (Q1, 0)}),
        ({"target_modules": r"q_proj"}, set()),
        ({"target_modules": "all-linear"}, {(Q1, 1), (Q1, 0), (EXPERT, 1), (FUSED, 1)}),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, {(EXPERT, 1), (FUSED, 1)}),
        ({"target_modules": ["q_proj", "gate_proj"], "exclude_modules": r".*experts.*"}, {(Q1, 1), (Q1, 0)}),
        ({"target_parameters": ["mlp.experts.gate_up_proj"], "layers_to_transform": [0]}, {(FUSED, 1)}),
    ],
)
def test_targets_are_those_of_peft(fields: dict[str, object], targeted: set[tuple[str, int]], tmp_path: Path) -> None:
    found = config(tmp_path, **fields)
    assert {x for x in ((Q1, 1), (Q1, 0), (EXPERT, 1), (FUSED, 1)) if found.targets(*x)} == targeted


def test_the_rest(tmp_path: Path) -> None:
    found = config(tmp_path, use_rslora=True, lora_alpha=2.5, peft_version="0.21.2", layers_to_transform=[])
    assert (found.rank, found.alpha, found.method, found.version, found.layers) == (4, 2.5, "rslora", (0, 21), None)
    with pytest.raises(PefxError, match="target_modules is '\\(', which is no regular expression"):
        config(tmp_path, target_modules="(")
    with pytest.raises(PefxError, match="lora_alpha must be a number, not zero, got 0"):
        config(tmp_path, lora_alpha=0)
