"""`serve.py` without its command line: builds the engine of a config and answers a file with it."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from pefx.adapters.bank import by_slot, empty_bank
from pefx.config import AdapterSpec, ServeConfig
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import Preemption, agree, barrier, owner, several
from pefx.families.config_json import read_config
from pefx.invariance import check_row_invariance
from pefx.loading import load_base
from pefx.mesh import check_divides, made, on_mesh, placement, resolved
from pefx.model import Base
from pefx.packing import tile_of, whole_pages
from pefx.serving.batch import Batch
from pefx.serving.engine import Engine
from pefx.serving.formats import read_fingerprint, writer_version
from pefx.serving.journal import Journal
from pefx.serving.pages import PageAllocator
from pefx.serving.policies import Policies
from pefx.serving.progress import Reporter
from pefx.serving.runner import Room, Runner
from pefx.serving.scheduler import Scheduler, Shard
from pefx.store.catalog import Catalog
from pefx.store.residency import Residency
from pefx.store.tiers import Tiers

INTERRUPTED = 130  # what shells report for Ctrl-C


def serve_file(config: ServeConfig, requests: str | Path, out: str | Path) -> int:
    """Answer the request file `requests` in `out`, going on where an earlier start was cut. Returns an exit code.

    Raises PefxError, before anything is written, where a file, the config, the base or the catalog is not as it must
    be, or `out` belongs to another run. See `pefx.serving.journal` for what is written.
    """
    requests, out = Path(requests), Path(out)
    run: dict[str, Any] = {
        "requests": read_fingerprint(requests),
        "config": dataclasses.asdict(config),
        # Other versions may give other bits.
        "software": {name: version(name) for name in ("jax", "jaxlib")} | writer_version(out),
    }
    Journal(out, run).check()
    catalog = None if config.catalog is None else Catalog.open(config.catalog, read_only=True)
    tokenizer = Tokenizer.load(config.base)
    mesh = resolved(config.mesh, config.sequences)
    check_divides(dataclasses.replace(read_config(config.base), weights=config.base_weights), mesh)
    with on_mesh(mesh):
        base, digest = load_base(config.base, config.precision, placement(), config.base_weights)
    run |= {"base": digest, "tokenizer": tokenizer.digest}
    policies = Policies(catalog, digest, bank_room(config), agree if several() else None)
    with Journal(out, run, owner()) as journal, on_mesh(mesh):
        journal.check()
        # What cannot be built must leave no trace of a run.
        engine = None if journal.complete else build_engine(config, base, tokenizer, policies, mesh.rows)
        with _in_turn():
            journal.start()
        total = run["requests"]["requests"]
        with Reporter(config.name, total, journal.answered, None if owner() else Console(quiet=True)) as reporter:
            if engine is None or journal.complete:
                reporter.say(f"{out} is complete already, its {total} answers stay as they are")
                return 0
            if journal.answered:
                reporter.say(f"{journal.answered} of {total} answers are there already, going on")
            with closing(engine):
                return _answer(Batch(requests, engine=engine, policies=policies, journal=journal, reporter=reporter))


def _answer(batch: Batch) -> int:
    """Run a batch; returns an exit code."""
    preemption = Preemption() if several() else None
    journal, reporter = batch.journal, batch.reporter
    try:
        with preemption or nullcontext():
            complete = batch.run(preemption.by) if preemption else batch.run()
    except KeyboardInterrupt:
        reporter.say(f"interrupted with {journal.answered} of {reporter.total} answers; start again")
        return INTERRUPTED
    if preemption and not complete:
        reporter.say(f"stopped with {journal.answered} of {reporter.total} answers; the same command goes on from here")
        return preemption.exit_code
    summary = batch.summary()
    journal.finish(summary)
    reporter.summary(summary, str(journal.out))
    return 0


@contextmanager
def _in_turn() -> Iterator[None]:
    """The owner first, when all have looked; then those that read what it wrote."""
    barrier("looked")
    if not owner():
        barrier("written")
    yield
    if owner():
        barrier("written")


def build_engine(config: ServeConfig, base: Base, tokenizer: Tokenizer, policies: Policies, shards: int) -> Engine:
    """An engine on this process's devices, with a bank only where there is a catalog to fill it from."""
    check_row_invariance()
    pages = config.pages or config.sequences * whole_pages(base.config.context, config.page_size)
    tile = tile_of(config.page_size)
    tiles = whole_pages(config.step_tokens, tile)
    slots, sequences, pages, tiles = (-(-n // shards) for n in (config.slots, config.sequences, pages, tiles))
    bank = None
    if config.catalog is not None:
        bank = made(by_slot, lambda: empty_bank(base.config, bank_room(config), shards * slots))
    room = Room(shards, pages, config.page_size, sequences, tiles, tile)
    residencies = [Residency(slots) for _ in range(shards)] if bank is not None else []
    scheduler = Scheduler(
        shards=[Shard(PageAllocator(pages), own) for own in residencies or [None] * shards],
        sequences=sequences,
        tiles=tiles,
        tile=tile,
        page_size=config.page_size,
    )
    return Engine(
        device=Runner(base, bank, room),
        scheduler=scheduler,
        policies=policies,
        tiers=Tiers(policies.load, config.host_cache_mb << 20, slots=residencies),
        tokenizer=tokenizer,
        seed=config.seed,
    )


def bank_room(config: ServeConfig) -> AdapterSpec:
    """What adapters the bank can hold: up to `max_rank`, on `targets`, in `expert_form`."""
    return AdapterSpec(rank=config.max_rank, targets=config.targets, expert_form=config.expert_form)
