"""Policies of several methods trained in one run, parked and resumed, committed, and served beside each other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, MeshConfig, ServeConfig, TrainConfig, UserConfig
from pefx.huggingface import save_base
from pefx.model import Base
from pefx.serving.run import serve_file
from pefx.store.catalog import Catalog
from pefx.training.journal import METRICS, read_rows
from pefx.training.run import train
from tests.test_serving_run import read, write
from tests.test_training_run import MODEL, ROOT, write_lines

TO_THE_BIT = True

TARGETS = ("q_proj", "down_proj")
SPECS = {
    "lora": AdapterSpec(rank=4, targets=TARGETS),
    "vera": AdapterSpec(method="vera", rank=8, targets=TARGETS),
    "dora": AdapterSpec(method="dora", rank=4, targets=TARGETS),
    "one": AdapterSpec("tiny_lora", 2, targets=("q_proj", "down_proj", "experts.up_proj"), units=1, tied="all"),
    "ga": AdapterSpec(method="lora_ga", rank=4, targets=TARGETS),
    "tiny": AdapterSpec(method="tiny_lora", rank=2, units=3, targets=TARGETS),
}
OTHERS = tuple(spec for spec in SPECS.values() if spec.method != "lora")


@pytest.fixture(name="world", scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and a run of all methods, each of which has a slot."""
    world = tmp_path_factory.mktemp("methods")
    save_base(Base(MODEL, nnx.Rngs(3)), world / "base", ROOT / "assets" / "base" / "tokenizer.json")
    for name in SPECS:
        write_lines(world / f"{name}.jsonl", name, 40)
    assert train(config(world, "resident")) == 0
    return world


def config(world: Path, output: str) -> TrainConfig:
    return TrainConfig(
        name="methods",
        output=str(world / output),
        base=str(world / "base"),
        catalog=str(world / f"{output}.catalog"),
        users=tuple(UserConfig(name, str(world / f"{name}.jsonl"), adapter=spec) for name, spec in SPECS.items()),
        data=DataConfig(sequence_length=32, tokens_per_user=64, users_per_step=2),
        checkpoint=CheckpointConfig(every=4),
        steps=6,
        mesh=MeshConfig(data=1),
        page_size=16,
    )


def hashes(world: Path, output: str) -> dict[str, str]:
    catalog = Catalog.open(world / f"{output}.catalog", read_only=True)
    return {name: catalog.get(name).content_hash for name in SPECS}


def test_all_of_them_learn(world: Path):
    rows = [row for row in read_rows(world / "resident" / METRICS) if row["kind"] == "train"]
    for name in SPECS:
        own = [row for row in rows if row["name"] == name]
        assert len(own) == 6
        assert all(row["gradient_norm"] > 0 for row in own)


def test_in_time_slices_they_end_in_the_same_bits(world: Path):
    """Two slots for four: each leaves and comes back, once to the slot of another method."""
    assert train(replace(config(world, "sliced"), slots=2, slice_steps=1)) == 0
    assert hashes(world, "sliced") == hashes(world, "resident")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(data=2), MeshConfig(data=1, expert=2)], ids=["data", "expert"])
def test_shards_of_data_and_experts_change_no_bit(world: Path, mesh: MeshConfig):
    output = f"sharded_{mesh.data}_{mesh.expert}"
    assert train(replace(config(world, output), mesh=mesh)) == 0
    assert hashes(world, output) == hashes(world, "resident")


def test_each_is_served_as_itself(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the directions that training has kept: none is made again; and without the texts that one started along."""
    monkeypatch.setattr(np.linalg, "svd", None)
    served = ServeConfig(
        name="methods", base=str(world / "base"), catalog=str(world / "resident.catalog"), slots=2, sequences=4,
        step_tokens=32, page_size=32, max_rank=8, targets=(*TARGETS, "experts.up_proj"), others=OTHERS,
        mesh=MeshConfig(data=1),
    )  # fmt: skip
    rows = [
        {
            "id": str(who),
            "policy": who,
            "prompt": "def vera_1(x): ret",
            "max_tokens": 6,
            "temperature": 0,
            "logprobs": True,
        }
        for who in (None, *SPECS)
    ]
    assert serve_file(served, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl") == 0
    answers = {answer["id"]: answer for answer in read(tmp_path / "out.jsonl")}
    assert len({json.dumps(answer["logprobs"]) for answer in answers.values()}) == len(rows)
    without = replace(served, others=OTHERS[:1])
    assert serve_file(without, tmp_path / "in.jsonl", tmp_path / "less.jsonl") == 0
    less = {answer["id"]: answer for answer in read(tmp_path / "less.jsonl")}
    assert less["dora"]["error"]["type"] == less["tiny"]["error"]["type"] == "wrong_form"
    assert (
        "is of method 'tiny_lora' (rank 2), which the bank does not hold (others)" in less["tiny"]["error"]["message"]
    )
    for who in ("None", "lora", "vera"):
        assert less[who]["logprobs"] == answers[who]["logprobs"]
    # With room at one of its sites only, a policy is refused: half of it would be another one.
    fewer = replace(served, others=tuple(replace(spec, targets=TARGETS[:1]) for spec in OTHERS))
    assert serve_file(fewer, tmp_path / "in.jsonl", tmp_path / "fewer.jsonl") == 0
    some = {answer["id"]: answer for answer in read(tmp_path / "fewer.jsonl")}
    assert {who for who, answer in some.items() if "error" in answer} == {"vera", "dora", "ga", "one", "tiny"}
