"""What a config needs in memory, from the shapes of what it would build; nothing is allocated."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from rich.table import Table

from pefx.adapters.bank import bank_spec, empty_bank
from pefx.adapters.shared import with_abstract_shared
from pefx.batch import KVPool
from pefx.config import AdapterSpec, ModelConfig, ServeConfig, TrainConfig
from pefx.families.config_json import read_config
from pefx.model import abstract_base
from pefx.optim import init_opt
from pefx.packing import whole_pages
from pefx.printed import text_of
from pefx.steps import init_pretrain


@dataclass(frozen=True)
class Size:
    """One line of the table: `numbers` elements in `bytes` bytes."""

    what: str
    numbers: int
    bytes: int


def sizes(config: TrainConfig | ServeConfig) -> list[Size]:
    """What stays resident through the run of `config`, by kind of state; temporaries of a step are not in it.

    Reads only the base's `config.json`. Raises PefxError if the base cannot be read.
    """
    if isinstance(config, ServeConfig):
        return list(serving_sizes(config))
    if config.pretrain is not None:
        base = abstract_base(config.pretrain.model)
        return [measure("base", base), measure("moments of the base", jax.eval_shape(init_pretrain, base))]
    return list(training_sizes(config))


def training_sizes(config: TrainConfig) -> Iterator[Size]:
    model = read_model(config.base or "", config)
    yield measure("base", abstract_base(model))
    specs = [user.adapter or config.adapter for user in config.users]
    yield from shared_sizes(model, specs)
    bank = abstract_bank(model, bank_spec(specs), len(config.users), specs)
    yield measure(f"bank of {len(config.users)} adapters", bank)
    opt = jax.eval_shape(init_opt, bank)
    yield measure("moments", (opt.mu, opt.nu))
    yield measure("accumulated gradients", opt.gradient)
    tokens = min(config.data.users_per_step, len(config.users)) * config.data.tokens_per_user
    yield pool(model, whole_pages(tokens, config.page_size), config.page_size)


def serving_sizes(config: ServeConfig) -> Iterator[Size]:
    model = read_model(config.base, config)
    yield measure("base", abstract_base(model))
    if config.catalog is not None:
        spec = AdapterSpec(rank=config.max_rank, targets=config.targets, expert_form=config.expert_form)
        yield from shared_sizes(model, config.others)
        yield measure(f"bank of {config.slots} slots", abstract_bank(model, spec, config.slots, config.others))
    pages = config.pages or config.sequences * whole_pages(model.context, config.page_size)
    yield pool(model, pages, config.page_size)


def shared_sizes(model: ModelConfig, specs: Sequence[AdapterSpec]) -> Iterator[Size]:
    """What adapters of these specs share on the base; nothing where they share nothing."""
    found = measure("shared by adapters", with_abstract_shared(abstract_base(model), specs).shared)
    if found.numbers:
        yield found


def read_model(base: str, config: TrainConfig | ServeConfig) -> ModelConfig:
    """The shape of the base in folder `base`, held as `config` says."""
    return replace(read_config(base), precision=config.precision, weights=config.base_weights)


def abstract_bank(model: ModelConfig, spec: AdapterSpec, slots: int, specs: Sequence[AdapterSpec] = ()) -> Any:
    return jax.eval_shape(lambda: empty_bank(model, spec, slots, specs))


def pool(model: ModelConfig, pages: int, page_size: int) -> Size:
    kv = jax.eval_shape(lambda: KVPool.zeros(model, pages, page_size))
    return measure(f"keys and values, {pages} pages of {page_size} tokens", kv)


def measure(what: str, tree: Any) -> Size:
    """Elements and bytes of all arrays of an abstract pytree."""
    leaves = jax.tree.leaves(tree)
    counts = [math.prod(leaf.shape) for leaf in leaves]
    return Size(what, sum(counts), sum(n * np.dtype(x.dtype).itemsize for n, x in zip(counts, leaves, strict=True)))


def render_sizes(config: TrainConfig | ServeConfig) -> str:
    """The table that `pefx plan` prints."""
    rows = sizes(config)
    table = Table(title=f"{config.name}: resident state", title_justify="left")
    table.add_column("state")
    table.add_column("numbers", justify="right")
    table.add_column("MiB", justify="right")
    for row in [*rows, Size("in all", sum(r.numbers for r in rows), sum(r.bytes for r in rows))]:
        table.add_row(row.what, f"{row.numbers:,}", f"{row.bytes / 2**20:,.2f}")
    return text_of(table, width=100)
