"""Rewards of adapters of a catalog on any task, whatever they were trained for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pefx.adapters.bank import load_adapter
from pefx.config import MeshConfig, TaskConfig, TrainConfig, UserConfig
from pefx.mesh import on_mesh
from pefx.rl.curriculum import Rewarded
from pefx.rl.rewards import Rewards
from pefx.store.catalog import Catalog
from pefx.training.adapters import AdapterTraining

MESH = MeshConfig(data=1)


def rewards(config: TrainConfig, catalog: Path, policies: Sequence[str], task: TaskConfig) -> list[float]:
    """The mean held-out reward of each policy's newest revision on `task`; of the base, where it is not there."""
    users = tuple(UserConfig(policy, task=task) for policy in policies)
    here = replace(config, users=users, catalog=None, slots=0, mesh=MESH)
    known = Catalog.open(catalog, read_only=True)
    there = set(known.policies())
    with on_mesh(MESH), Rewards() as judge:
        trainee = AdapterTraining(here, MESH, partial(Rewarded, rewards=judge))
        slots = trainee.resident
        for index, policy in enumerate(policies):
            if policy in there:
                adapter, spec = known.load(known.get(policy)), slots.sessions[index].spec
                slots.bank = load_adapter(slots.bank, slots.place(index), adapter, spec)
        found = trainee.evaluate()
    return [found[policy] for policy in policies]
