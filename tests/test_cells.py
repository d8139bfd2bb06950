"""Cells of a sweep: every adapter with every rate, the same data for each, the best first."""

from dataclasses import replace

import pytest

from pefx.config import AdapterSpec, OptimizerConfig, Scaling, SweepConfig, TrainConfig, UserConfig
from pefx.sweeping.cells import cells, population, results

ADAPTERS = (AdapterSpec(rank=1, alpha=2.0), AdapterSpec(rank=4, init="minor"))
CONFIG = SweepConfig(
    "grid",
    TrainConfig("run", "out", users=(UserConfig("ann", "a.jsonl"),), optimizer=OptimizerConfig(weight_decay=0.5)),
    ADAPTERS,
    (1e-3, 2e-2),
    Scaling("by_rank", "unchanged"),
    seeds=2,
)


def test_every_adapter_meets_every_rate():
    assert [cell.name for cell in cells(CONFIG)] == [
        "lora-r1-a2-lr0.001", "lora-r1-a2-lr0.02", "lora-r4-minor-a16-lr0.001", "lora-r4-minor-a16-lr0.02",
    ]  # fmt: skip


def test_adapters_meet_every_rank_by_the_scaling():
    ranked = replace(CONFIG, adapters=ADAPTERS[:1], ranks=(1, 4), scaling=Scaling("by_root", "mu_a"))
    found = [(c.record.adapter.rank, c.record.adapter.alpha, c.record.learning_rate) for c in cells(ranked)]
    assert found == [(1, 2.0, 1e-3), (1, 2.0, 2e-2), (4, 4.0, 1e-3 * 4**-0.25), (4, 4.0, 2e-2 * 4**-0.25)]


def test_a_population_has_a_user_for_each_cell_and_seed():
    run = population(CONFIG)
    assert run.name == "grid"
    assert len({user.name for user in run.users}) == len(run.users) == 8
    for index, user in enumerate(run.users):
        assert (user.train, user.seed) == ("a.jsonl", index % 2)
        assert user.adapter == ADAPTERS[index // 4]
        assert user.optimizer is not None
        assert (user.optimizer.learning_rate, user.optimizer.weight_decay) == ((1e-3, 2e-2)[index // 2 % 2], 0.5)


@pytest.mark.parametrize(("measure", "best"), [("reward", 3), ("nats_per_token", 0)])
def test_the_best_comes_first_by_its_last_measure(measure, best):
    key = "reward" if measure == "reward" else "loss"
    rows = [
        {"kind": "heldout", "name": user.name, "step": step, key: float(index // 2 + 10 * (step == 0) + index % 2 / 4)}
        for step in (0, 5)
        for index, user in enumerate(population(CONFIG).users)
    ]
    found = results(CONFIG, rows, measure)
    assert found[0].cell == cells(CONFIG)[best]
    assert found[0].values == (float(best), best + 0.25)
    assert found[0].mean == best + 0.125
    assert found[0].spread is not None
    assert found[0].spread.low <= found[0].mean <= found[0].spread.high
    single = results(replace(CONFIG, seeds=1), rows, measure)
    assert single[0].spread is None
