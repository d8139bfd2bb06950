"""What a `ServeConfig` names, read from disk, and an engine made of it, or of a bank that others fill."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pefx.adapters.bank import Bank, empty_bank
from pefx.adapters.sharded_slots import by_slot
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec, MeshConfig, ServeConfig
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import agree, several
from pefx.families.config_json import read_config
from pefx.invariance import check_row_invariance
from pefx.loading import load_base
from pefx.mesh import check_divides, made, on_mesh, placement, resolved
from pefx.model import Base
from pefx.packing import tile_of, whole_pages
from pefx.serving.engine import Engine, Way
from pefx.serving.fair_queue import Queue
from pefx.serving.grammar import Grammars
from pefx.serving.loading import Source
from pefx.serving.memory import Keep, keeper
from pefx.serving.pages import PageAllocator
from pefx.serving.policies import Policies
from pefx.serving.runner import Room, Runner
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.store.catalog import Catalog
from pefx.store.residency import Residency, Slots
from pefx.store.tiers import Tiers


@dataclass(frozen=True)
class Parts:
    """A base on its mesh, with its digest and tokenizer, and the policies that may be served on it."""

    base: Base
    digest: str
    tokenizer: Tokenizer
    policies: Policies
    mesh: MeshConfig
    keep: Keep | None = None


def read_parts(config: ServeConfig, catalog: Catalog | None) -> Parts:
    """Raises PefxError where base, tokenizer or mesh are not as they must be."""
    tokenizer = Tokenizer.load(config.base)
    mesh = resolved(config.mesh, config.sequences)
    check_divides(replace(read_config(config.base), weights=config.base_weights), mesh)
    with on_mesh(mesh):
        base, digest = load_base(config.base, config.precision, placement(), config.base_weights)
        base = with_shared(base, config.others, digest)
    policies = Policies(catalog, digest, bank_room(config), agree if several() else None, config.others)
    keep = None if catalog is None or several() or catalog.space.read_only else keeper(catalog, digest)
    return Parts(base, digest, tokenizer, policies, mesh, keep)


@dataclass(frozen=True)
class EngineSize:
    """What an engine runs at once, over all shards: see the fields of `pefx.config.ServeConfig`."""

    sequences: int
    step_tokens: int
    page_size: int
    pages: int = 0
    prefix_cache: bool = True


@dataclass(frozen=True)
class Supply:
    """Adapters: the `bank` on the device (None: there are none), its slots by shard, and where weights come from."""

    bank: Bank | None
    slots: Sequence[Slots | None]
    source: Source
    policies: Policies | None = None
    keep: Keep | None = None


def build_engine(config: ServeConfig, parts: Parts, queue: Queue, way: Way) -> tuple[Engine, Tiers]:
    """An engine on this process's devices, with a bank only where there is a catalog to fill it from; and its tiers.

    To be called, as the engine is to be used, within the mesh of `parts`.
    """
    base, shards = parts.base, parts.mesh.rows
    slots, bank = whole_pages(config.slots, shards), None
    if config.catalog is not None:
        bank = made(by_slot, lambda: empty_bank(base.config, bank_room(config), shards * slots, config.others))
    residencies = [Residency(slots) for _ in range(shards)] if bank is not None else []
    tiers = Tiers(parts.policies.load, config.host_cache_mb << 20, slots=residencies)
    supply = Supply(bank, residencies or [None] * shards, tiers, parts.policies, parts.keep)
    size = EngineSize(config.sequences, config.step_tokens, config.page_size, config.pages, config.prefix_cache)
    return assemble(base, supply, parts.tokenizer, size, queue, way)[0], tiers


def assemble(
    base: Base, supply: Supply, tokenizer: Tokenizer, size: EngineSize, queue: Queue, way: Way
) -> tuple[Engine, Runner]:
    """An engine of that size, and its device. Within the mesh; `supply.slots` are those of its shards of rows."""
    check_row_invariance()
    shards, tile = len(supply.slots), tile_of(size.page_size)
    pages = size.pages or size.sequences * whole_pages(base.config.context, size.page_size)
    tiles = whole_pages(size.step_tokens, tile)
    sequences, pages, tiles = (whole_pages(n, shards) for n in (size.sequences, pages, tiles))
    runner = Runner(base, supply.bank, Room(shards, pages, size.page_size, sequences, tiles, tile))
    engine = Engine(
        device=runner,
        scheduler=Scheduler(
            shards=[Shard(PageAllocator(pages, size.prefix_cache), own) for own in supply.slots],
            size=StepSize(sequences, tiles, tile, size.page_size),
            queue=queue,
            patience=way.patience,
        ),
        source=supply.source,
        tokenizer=tokenizer,
        policies=supply.policies,
        grammars=Grammars(tokenizer.to_json(), base.config.vocab_size, tokenizer.eos),
        keep=supply.keep,
        way=way,
    )
    return engine, runner


def bank_room(config: ServeConfig) -> AdapterSpec:
    """What adapters the bank can hold: up to `max_rank`, on `targets`, in `expert_form`."""
    return AdapterSpec(rank=config.max_rank, targets=config.targets, expert_form=config.expert_form)
