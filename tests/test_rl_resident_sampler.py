"""Who is drawn from: policies as their updates made them, or, in studies, as they were."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from pefx.config import (
    AdapterSpec,
    DataConfig,
    MeshConfig,
    ModelConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.data.tokenizer import Tokenizer
from pefx.huggingface import save_base
from pefx.model import Base
from pefx.rl.curriculum import Rewarded
from pefx.rl.live_engine import LiveEngine
from pefx.rl.resident_sampler import ResidentSampler
from pefx.rl.rewards import Rewards
from pefx.training.adapters import AdapterTraining

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
    hidden=16, layers=2, heads=2, kv_heads=1, head_size=8, dense_hidden=16, expert_hidden=8, experts=2,
    experts_per_token=1, context=64,
)  # fmt: skip


@pytest.fixture(name="config")
def make_config(tmp_path: Path) -> TrainConfig:
    save_base(Base(MODEL, nnx.Rngs(3)), tmp_path / "base", ROOT / "assets" / "base" / "tokenizer.json")
    return TrainConfig(
        name="run",
        output=str(tmp_path / "out"),
        base=str(tmp_path / "base"),
        users=tuple(UserConfig(name, task=TaskConfig("sorting")) for name in ("ann", "bob")),
        adapter=AdapterSpec(rank=2, targets=("q_proj",)),
        data=DataConfig(sequence_length=32, tokens_per_user=2048),
        accumulate=2,
    )


def numbers(sampler: ResidentSampler, training: AdapterTraining, stale: bool = True) -> dict[str, int]:
    return {policy: revision.number for policy, revision in sampler.at(training, stale)[1].items()}


@pytest.mark.parametrize("stale", [0, 1])
def test_revisions_count_updates(config: TrainConfig, stale: int) -> None:
    config = replace(config, sampler=SamplerConfig(sequences=2, step_tokens=32, stale=stale))
    training = AdapterTraining(config, MeshConfig(data=1), partial(Rewarded, rewards=Rewards()))
    sampler = ResidentSampler(config, Tokenizer.load(str(config.base)), routes=False)
    assert numbers(sampler, training) == {"ann": 0, "bob": 0}
    before = np.asarray(training.bank.scales)
    for _ in range(3):
        training.progress[0] = training.progress[0].after(0)  # three micro-batches are one update
    assert numbers(sampler, training) == {"ann": 0 if stale else 1, "bob": 0}
    assert numbers(sampler, training, stale=False) == {"ann": 1, "bob": 0}
    np.testing.assert_array_equal(np.asarray(training.bank.scales), before)


@pytest.mark.parametrize(("sequences", "pages"), [(8, 8 * 2), (1, 4)])
def test_there_are_pages_for_what_can_be_learned_from(config: TrainConfig, monkeypatch, sequences: int, pages: int):
    sizes, made = [], LiveEngine.__init__

    def noted(self, *places, size, **names):
        sizes.append(size.pages)
        made(self, *places, size=size, **names)

    monkeypatch.setattr(LiveEngine, "__init__", noted)
    config = replace(config, sampler=SamplerConfig(sequences=sequences), page_size=16)  # lessons of 32, a context of 64
    training = AdapterTraining(config, MeshConfig(data=1), partial(Rewarded, rewards=Rewards()))
    ResidentSampler(config, Tokenizer.load(str(config.base)), routes=False).at(training)
    assert sizes == [pages]
