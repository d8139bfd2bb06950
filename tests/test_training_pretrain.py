"""A base trains, resumes to the same bits, and is exported with its card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, TrainConfig
from pefx.errors import PefxError
from pefx.loading import load_base
from pefx.training.pretrain import BaseTraining
from pefx.training.run import train

TOKENIZER = str(Path(__file__).parents[1] / "assets" / "base")
MODEL = ModelConfig(
    hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, dense_hidden=32, expert_hidden=16, experts=4,
    experts_per_token=2, context=64,
)  # fmt: skip


@pytest.fixture(name="world", scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("world")
    for name, numbers in (("train", range(300)), ("heldout", range(1000, 1040))):
        rows = [json.dumps({"text": f"def function_{i}(x): return x + {i}\n"}) for i in numbers]
        (world / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return world


def config(world: Path, output: str, **model: Any) -> TrainConfig:
    files = [str(world / name) for name in ("train.jsonl", "heldout.jsonl", f"{output}.base")]
    pretrain = PretrainConfig(replace(MODEL, **model), TOKENIZER, *files, batch_tokens=128)
    return TrainConfig(
        name="base",
        output=str(world / output),
        pretrain=pretrain,
        data=DataConfig(sequence_length=32, heldout_tokens=128),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1),
        checkpoint=CheckpointConfig(every=3),
        steps=8,
    )


def result(world: Path, output: str) -> dict[str, Any]:
    return json.loads((world / output / "finished.json").read_text())["result"]


def test_a_base_trains_and_resumes_to_the_same_digest(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(config(world, "whole")) == 0
    advance = BaseTraining.advance

    def dies_at_five(self: BaseTraining, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return advance(self, step)

    monkeypatch.setattr(BaseTraining, "advance", dies_at_five)
    with pytest.raises(KeyboardInterrupt):
        train(config(world, "killed"))
    assert not (world / "killed.base").exists()
    monkeypatch.undo()
    assert train(config(world, "killed")) == 0
    whole, killed = result(world, "whole"), result(world, "killed")
    assert (whole["digest"], whole["heldout_loss"]) == (killed["digest"], killed["heldout_loss"])

    base, digest = load_base(world / "whole.base", "float32")
    assert digest == whole["digest"]
    assert base.config.precision == "float32"
    assert np.isfinite(np.asarray(base.embed[...])).all()
    card = (world / "whole.base" / "README.md").read_text()
    assert f"{whole['heldout_loss']:.4f} nats per token" in card
    rows = [json.loads(line) for line in (world / "whole" / "metrics.jsonl").read_text().splitlines()]
    heldout = [row["loss"] for row in rows if row["kind"] == "heldout"]
    assert heldout[-1] == whole["heldout_loss"] < heldout[0] - 0.5


def test_bad_configs(world: Path) -> None:
    good = config(world, "bad")
    assert good.pretrain is not None
    for change, message in [
        ({"accumulate": 2}, "'accumulate' is 2"),
        ({"base": "somewhere"}, "goes with neither 'users' nor 'base'"),
        ({"data": replace(good.data, sequence_length=65)}, "sequence_length is 65, the model's context only 64"),
        (
            {"pretrain": replace(good.pretrain, model=replace(MODEL, vocab_size=4000))},
            "4096 tokens, the model config 4000",
        ),
        ({"pretrain": replace(good.pretrain, batch_tokens=100)}, "must be a multiple of page_size"),
        ({"pretrain": replace(good.pretrain, train=str(world / "none.jsonl"))}, r"none\.jsonl: no such file"),
    ]:
        with pytest.raises(PefxError, match=message):
            train(replace(good, **change))
    assert not (world / "bad").exists()
