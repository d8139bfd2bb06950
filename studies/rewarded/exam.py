"""Adapters of a catalog examined on anything, whatever they were trained for: rewards of a task, or nats per token."""

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
AT_ONCE = 48  # users whose adapters are on the device together


def rewards(config: TrainConfig, catalog: Path, policies: Sequence[str], task: TaskConfig) -> list[float]:
    """The mean held-out reward of each policy's newest revision on `task`; of the base, where it is not there."""
    found = measured(config, catalog, [UserConfig(policy, task=task) for policy in policies])
    return [found[policy] for policy in policies]


def measured(config: TrainConfig, catalog: Path, users: Sequence[UserConfig]) -> dict[str, float]:
    """What each user's newest revision comes to on what is held out of that user; the base, where it is not there."""
    found: dict[str, float] = {}
    known = Catalog.open(catalog, read_only=True)
    there = set(known.policies())
    count = -(-len(users) // -(-len(users) // AT_ONCE))  # alike in all rounds, so that one program does
    for start in range(0, len(users), count):
        some = tuple(users[start : start + count])
        here = replace(config, users=some, catalog=None, slots=0, mesh=MESH)
        with on_mesh(MESH), Rewards() as judge:
            trainee = AdapterTraining(here, MESH, partial(Rewarded, rewards=judge))
            slots = trainee.resident
            for index, user in enumerate(some):
                if user.name in there:
                    adapter, spec = known.load(known.get(user.name)), slots.sessions[index].spec
                    slots.bank = load_adapter(slots.bank, slots.place(index), adapter, spec, trainee.base)
            found |= trainee.evaluate()
    return found
