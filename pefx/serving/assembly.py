"""What a `ServeConfig` names, read from disk, and an engine made of it."""

from dataclasses import dataclass, replace

from pefx.adapters.bank import by_slot, empty_bank
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
from pefx.serving.pages import PageAllocator
from pefx.serving.policies import Policies
from pefx.serving.runner import Room, Runner
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.store.catalog import Catalog
from pefx.store.residency import Residency
from pefx.store.tiers import Tiers


@dataclass(frozen=True)
class Parts:
    """A base on its mesh, with its digest and tokenizer, and the policies that may be served on it."""

    base: Base
    digest: str
    tokenizer: Tokenizer
    policies: Policies
    mesh: MeshConfig


def read_parts(config: ServeConfig, catalog: Catalog | None) -> Parts:
    """Raises PefxError where base, tokenizer or mesh are not as they must be."""
    tokenizer = Tokenizer.load(config.base)
    mesh = resolved(config.mesh, config.sequences)
    check_divides(replace(read_config(config.base), weights=config.base_weights), mesh)
    with on_mesh(mesh):
        base, digest = load_base(config.base, config.precision, placement(), config.base_weights)
    policies = Policies(catalog, digest, bank_room(config), agree if several() else None)
    return Parts(base, digest, tokenizer, policies, mesh)


def build_engine(config: ServeConfig, parts: Parts, queue: Queue, way: Way) -> tuple[Engine, Tiers]:
    """An engine on this process's devices, with a bank only where there is a catalog to fill it from; and its tiers.

    To be called, as the engine is to be used, within the mesh of `parts`.
    """
    check_row_invariance()
    base, shards, tokenizer = parts.base, parts.mesh.rows, parts.tokenizer
    pages = config.pages or config.sequences * whole_pages(base.config.context, config.page_size)
    tile = tile_of(config.page_size)
    tiles = whole_pages(config.step_tokens, tile)
    slots, sequences, pages, tiles = (-(-n // shards) for n in (config.slots, config.sequences, pages, tiles))
    bank = None
    if config.catalog is not None:
        bank = made(by_slot, lambda: empty_bank(base.config, bank_room(config), shards * slots))
    residencies = [Residency(slots) for _ in range(shards)] if bank is not None else []
    tiers = Tiers(parts.policies.load, config.host_cache_mb << 20, slots=residencies)
    engine = Engine(
        device=Runner(base, bank, Room(shards, pages, config.page_size, sequences, tiles, tile)),
        scheduler=Scheduler(
            shards=[Shard(PageAllocator(pages, config.prefix_cache), own) for own in residencies or [None] * shards],
            size=StepSize(sequences, tiles, tile, config.page_size),
            queue=queue,
        ),
        policies=parts.policies,
        tiers=tiers,
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer.to_json(), base.config.vocab_size, tokenizer.eos),
        way=way,
    )
    return engine, tiers


def bank_room(config: ServeConfig) -> AdapterSpec:
    """What adapters the bank can hold: up to `max_rank`, on `targets`, in `expert_form`."""
    return AdapterSpec(rank=config.max_rank, targets=config.targets, expert_form=config.expert_form)
