"""The arguments of a plan's two steps as shapes with shardings: no number of them is ever in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pefx.adapters.bank import bank_spec, empty_bank
from pefx.adapters.methods.recipe import needs_room
from pefx.adapters.methods.table import uneven
from pefx.adapters.sharded_slots import by_slot
from pefx.adapters.shared import with_abstract_shared
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec, ModelConfig, PlanConfig, ServeConfig, TrainConfig
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.mesh import Axes, by_page, by_row, of_base, shardings
from pefx.model import abstract_base
from pefx.optim import init_opt
from pefx.packing import Sizes, pack, tile_of, whole_pages
from pefx.presets import PRESETS
from pefx.sampling import greedy
from pefx.steps import ServePlan, ServeState, TrainHyper
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, lay_out


def plan_of(config: TrainConfig | ServeConfig, topology: str) -> PlanConfig:
    """What a training or serving config would be on that slice, with the shapes it has here on each shard of rows."""
    given: dict[str, Any] = {"name": config.name, "base": config.base or "", "topology": topology}
    given |= {name: getattr(config, name) for name in ("mesh", "page_size", "precision", "base_weights")}
    if isinstance(config, ServeConfig):
        spec = AdapterSpec(rank=config.max_rank, targets=config.targets, expert_form=config.expert_form)
        own = {name: getattr(config, name) for name in ("slots", "sequences", "step_tokens")}
        return PlanConfig(**given, adapter=spec, others=config.others, **own)
    specs = [user.adapter or config.adapter for user in config.users]
    users = min(len(specs), config.data.users_per_step)
    if not specs:
        raise PefxError("config field 'users' is empty: a slice is planned for adapters over a base, not for a base")
    others = tuple(dict.fromkeys(spec for spec in specs if needs_room(spec)))
    own = {"users": users, "slots": len(specs), "tokens_per_user": config.data.tokens_per_user, "remat": config.remat}
    return PlanConfig(**given, adapter=bank_spec(specs), others=others, context=config.data.sequence_length, **own)


class Arguments(NamedTuple):
    """What lies on the mesh, by kind. `batch` and `hyper` are a training step's, `serve` a serving step's."""

    base: Any
    bank: Any
    optimizer: Any
    pool: Any
    batch: Any
    hyper: Any
    serve: Any


def model_of(config: PlanConfig) -> ModelConfig:
    """The base's shape at the plan's precision. Raises PefxError where `base` is neither a preset nor a folder."""
    found = PRESETS.get(config.base)
    if found is None and not Path(config.base).is_dir():
        raise PefxError(
            f"config field 'base' is {config.base!r}: no such folder, and no preset; presets are {_known()}"
        )
    return replace(found or read_config(config.base), precision=config.precision, weights=config.base_weights)


def _known() -> str:
    return ", ".join(PRESETS)


def arguments(config: PlanConfig, model: ModelConfig, mesh: Mesh) -> Arguments:
    """All arguments of both steps, divided over `mesh`."""

    def on(axes: Axes, tree: Any) -> Any:
        def one(x: Any, where: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        return jax.tree.map(one, tree, shardings(axes, tree, mesh))

    rows = config.mesh.rows
    specs = adapters_of(config)
    bank = jax.eval_shape(lambda: empty_bank(model, bank_spec([config.adapter]), rows * config.slots, specs))
    optimizer = jax.eval_shape(lambda bank: init_opt(bank, accumulate=False), bank)
    pages = rows * config.sequences * whole_pages(config.context, config.page_size)
    pool = jax.eval_shape(lambda: ServeState(KVPool.zeros(model, pages, config.page_size, bank.memory)))
    return Arguments(
        base=on(of_base, with_abstract_shared(abstract_base(model), specs)),
        bank=on(by_slot, bank),
        optimizer=on(by_slot, optimizer),
        pool=on(by_page, pool),
        batch=on(by_row, _of_all(train_batch(config), rows)),
        hyper=on(by_row, _of_all(train_hyper(config), rows)),
        serve=on(by_row, _of_all(serve_plan(config), rows)),
    )


def adapters_of(config: PlanConfig) -> list[AdapterSpec]:
    """What adapters there is room for that a bank of factors alone could not hold."""
    return [spec for spec in (config.adapter, *config.others) if needs_room(spec)]


def remembers(config: PlanConfig) -> bool:
    """Whether some adapter has a memory."""
    return any(spec.method == "delta_mem" for spec in adapters_of(config))


def _of_all(part: Any, shards: int) -> Any:
    """The shapes of all shards' parts from one's."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * shards, *x.shape[1:]), x.dtype), part)


def train_batch(config: PlanConfig) -> Any:
    """One shard's part of a training batch."""
    length = min(config.tokens_per_user, config.context)
    layout = Layout(config.users, config.tokens_per_user, length, config.page_size, memory=remembers(config))
    return device_batch(lay_out([[[] for _ in range(config.users)]], layout))


def train_hyper(config: PlanConfig) -> TrainHyper:
    """One shard's active adapters."""
    ones = np.ones(config.users, np.float32)
    rates = dict.fromkeys(uneven([config.adapter, *config.others]), ones) or None
    whether, states = np.ones(config.users, bool), ones if remembers(config) else None
    slots = np.zeros(config.users, np.int32)
    return TrainHyper(slots, ones, ones, ones, ones, ones, ones, whether, rates=rates, states=states)


def serve_plan(config: PlanConfig) -> ServePlan:
    """One shard's part of a step that decodes all sequences beside a chunk of prompts."""
    tile, blocks = tile_of(config.page_size), whole_pages(config.context, config.page_size)
    tiles, seats = whole_pages(config.step_tokens, tile), config.sequences
    sizes = Sizes(seats, tiles, seats, blocks, config.page_size, tile, remembers(config))
    ints = np.zeros(seats, np.int32)
    return ServePlan(
        batch=TokenBatch(**pack([], sizes)),
        rows=ints,
        targets=ints,
        how=greedy(config.sequences),
        singles=config.sequences,
    )
