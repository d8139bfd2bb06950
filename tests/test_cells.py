"""Cells of a sweep: every adapter with every rate, the same data for each, the best first."""

from dataclasses import replace

import pytest

from pefx.config import AdapterSpec, HalvingConfig, OptimizerConfig, Scaling, SweepConfig, TrainConfig, UserConfig
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


def test_cells_that_were_stopped_come_after_all_others():
    halved = replace(CONFIG, seeds=1, rungs=(2, 5), run=replace(CONFIG.run, steps=9))
    assert population(halved).halving == HalvingConfig((2, 5), 0.5, 1)
    assert population(CONFIG).halving is None
    names = [user.name for user in population(halved).users]
    values = dict(zip(names, (0.9, float("nan"), 0.1, 0.2), strict=True))
    rows = [{"kind": "heldout", "name": name, "step": 9, "reward": value} for name, value in values.items()]
    rows += [
        {"kind": "stopped", "name": names[0], "updates": 2.0},
        {"kind": "stopped", "name": names[3], "updates": 5.0},
    ]
    found = results(halved, rows, "reward")
    assert [cells(halved).index(one.cell) for one in found] == [2, 1, 3, 0]
    assert [one.updates for one in found] == [9, 9, 5, 2]


def test_a_mean_of_what_is_no_number_has_no_interval():
    rows = [{"kind": "heldout", "name": user.name, "loss": float("nan")} for user in population(CONFIG).users]
    assert all(one.spread is None for one in results(CONFIG, rows, "nats_per_token"))
