"""Configs of runs become plans."""

import pytest

from pefx.config import AdapterSpec, ServeConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.planning.abstract import model_of, plan_of


def test_a_config_of_a_run_becomes_a_plan() -> None:
    users = (UserConfig("a", "a"), UserConfig("b", "b", adapter=AdapterSpec(rank=4)))
    planned = plan_of(TrainConfig(name="t", output="o", base="assets/base", users=users), "v6e:2x2")
    assert (planned.users, planned.slots, planned.adapter.rank) == (2, 2, 8)
    assert model_of(planned).hidden == 192
    assert plan_of(ServeConfig(name="s", base="assets/base", max_rank=5), "v6e:2x2").adapter.rank == 5
    with pytest.raises(PefxError, match="'users' is empty"):
        plan_of(TrainConfig(name="t", output="o"), "v6e:2x2")
