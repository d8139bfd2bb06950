"""The card states data, tokens, time and held-out loss."""

from dataclasses import replace

from pefx.config import ModelConfig, PretrainConfig, TrainConfig
from pefx.training.loop import Outcome
from pefx.training.model_card import model_card


def test_the_card_states_what_it_must() -> None:
    pretrain = PretrainConfig(ModelConfig(), "assets/base", "corpus/train.jsonl", "corpus/heldout.jsonl", "assets/base")
    pretrain = replace(pretrain, about="Code of a thousand people.")
    config = TrainConfig(name="base_small", output="out", pretrain=pretrain, steps=1000)
    outcome = Outcome(0, {0: {"base": 8.75}, 1000: {"base": 2.3456}}, seconds=3725.0, tokens=2_048_000.0)
    card = model_card(config, pretrain, outcome, parameters=4_638_528, corpus=1_024_000)
    for fact in ("# base_small", "4,638,528 parameters", "2.3456 nats per token", "| time | 1:02:05 |", "(2.0 passes)"):
        assert fact in card
    assert "`corpus/train.jsonl`: 1,024,000 tokens" in card
    assert "| 0 | 8.7500 |\n| 1,000 | 2.3456 |" in card
    assert "\nCode of a thousand people. The model has no safety training.\n" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
