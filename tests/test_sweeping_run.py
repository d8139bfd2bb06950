"""A sweep end to end: every cell ends in the bits of a run of its own; table, picture and best are there."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    Scaling,
    SweepConfig,
    TrainConfig,
    UserConfig,
)
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.model import Base
from pefx.rl.run import learn
from pefx.store.catalog import Catalog
from pefx.sweeping.cells import cells, population
from pefx.sweeping.run import sweep
from pefx.training.adapters import AdapterTraining
from pefx.training.journal import METRICS, read_rows
from tests.test_training_run import MODEL, ROOT, write_lines

TO_THE_BIT = True


@pytest.fixture(name="config", scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    world = tmp_path_factory.mktemp("sweep")
    save_base(Base(MODEL, nnx.Rngs(3)), world / "base", ROOT / "assets" / "base" / "tokenizer.json")
    user = UserConfig("ann", write_lines(world / "a.jsonl", "a", 40), write_lines(world / "h.jsonl", "h", 6))
    run = TrainConfig(
        name="grid",
        output=str(world / "out"),
        base=str(world / "base"),
        catalog=str(world / "catalog"),
        users=(user,),
        data=DataConfig(sequence_length=32, tokens_per_user=64, users_per_step=4, heldout_tokens=64),
        checkpoint=CheckpointConfig(every=4),
        mesh=MeshConfig(data=1),
        steps=4,
    )
    targets = ("q_proj", "down_proj")
    adapters = (AdapterSpec(rank=2, targets=targets), AdapterSpec(rank=4, targets=targets, init="pissa"))
    return SweepConfig("grid", run, adapters, (1e-3, 5e-2), Scaling("by_rank", "unchanged"))


def test_cells_are_runs_of_their_own_and_the_best_is_told(config: SweepConfig, capsys: pytest.CaptureFixture[str]):
    assert sweep(config, ranks=(64,)) == 0
    out = Path(config.run.output)
    best = json.loads((out / "best.json").read_text())
    assert best["measure"] == "nats_per_token"
    record, told = best["record"], capsys.readouterr().out.splitlines()
    assert f"-r{record['adapter']['rank']}-" in told[-3]
    assert (
        told[-1]
        == f"  rank 64: alpha {64 / record['adapter']['rank'] * 16:g}, learning rate {record['learning_rate']:g}"
    )
    assert (out / "sweep.png").is_file()
    assert len((out / "sweep.md").read_text().splitlines()) == 2 + len(cells(config))
    together = Catalog.open(out.parent / "catalog", read_only=True)
    for user in (population(config).users[1], population(config).users[2]):
        alone = replace(config.run, output=str(out / "alone"), catalog=str(out / "alone.catalog"), users=(user,))
        assert learn(replace(alone, output=f"{alone.output}.{user.name.replace('/', '.')}")) == 0
        own = Catalog.open(out / "alone.catalog", read_only=True)
        assert own.get(user.name).content_hash == together.get(user.name).content_hash
    assert sweep(config) == 0  # done: nothing is trained again


def test_ranks_of_which_the_rule_says_nothing_are_refused_before_training(config: SweepConfig):
    fresh = replace(config, scaling=Scaling("by_rank", "mu_a"), run=replace(config.run, output="nowhere"))
    with pytest.raises(PefxError, match="'mu_a' says nothing of 'lora' with alpha 'by_rank'"):
        sweep(fresh, ranks=(64,))
    assert not Path("nowhere").exists()


class Killed(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, config: SweepConfig) -> None:
    whole = AdapterTraining.advance

    def advance(self: AdapterTraining, now: int):
        if now == step:
            raise Killed
        return whole(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTraining, "advance", advance)
        with pytest.raises(Killed):
            sweep(config)


@pytest.mark.parametrize("every", [0, 2])
def test_halving_stops_the_worse_and_changes_no_bit_of_the_others(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
):
    data = replace(config.run.data, users_per_step=3)  # fewer than cells: these take turns
    run = replace(config.run, output=str(tmp_path / "out"), catalog=str(tmp_path / "catalog"), data=data)
    halved = replace(config, run=replace(run, checkpoint=CheckpointConfig(every=every)), rungs=(1, 3), keep=0.5)
    # Steps of the run: two to the first rung, two to the second, one to the end.
    for step in (1, 2, 4):
        killed_at(step, monkeypatch, halved)
    assert sweep(halved) == 0
    rows = read_rows(tmp_path / "out" / METRICS)
    stopped = {row["name"]: row["updates"] for row in rows if row["kind"] == "stopped"}
    assert sorted(stopped.values()) == [1.0, 1.0, 3.0]
    names = [user.name for user in population(halved).users]
    trained = Counter(row["name"] for row in rows if row["kind"] == "train")
    assert trained == {name: stopped.get(name, 4) for name in names}
    lines = (tmp_path / "out" / "sweep.md").read_text().splitlines()[2:]
    assert [int(line.split(" | ")[2]) for line in lines] == [4, 3, 1, 1]
    (best,) = set(names) - set(stopped)
    assert sweep(replace(config, run=replace(run, output=str(tmp_path / "full"), catalog=str(tmp_path / "all")))) == 0
    mine, full = (Catalog.open(tmp_path / name, read_only=True) for name in ("catalog", "all"))
    assert mine.get(best).content_hash == full.get(best).content_hash
    whole = read_rows(tmp_path / "full" / METRICS)
    for name in names:
        own, other = curve(rows, "train", name), curve(whole, "train", name)
        assert own == other[: len(own)]
        revision = mine.get(name)
        assert revision.step == len(own)
        assert revision.metrics["heldout_nats_per_token"]["after"] == curve(rows, "heldout", name)[-1]


def curve(rows: list[dict[str, Any]], kind: str, name: str) -> list[float]:
    return [row["loss"] for row in rows if row["kind"] == kind and row["name"] == name]


def test_without_anything_held_out_no_cell_is_better(config: SweepConfig):
    (user,) = config.run.users
    bare = replace(config.run, output=f"{config.run.output}.bare", catalog=None, users=(replace(user, heldout=None),))
    with pytest.raises(PefxError, match="nothing was held out, so that no cell is better than another"):
        sweep(replace(config, run=bare, adapters=config.adapters[:1]))
