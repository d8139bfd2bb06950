"""`serve.py` over a file, without its command line: builds the engine of a config and answers a file with it."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from pefx.config import ServeConfig
from pefx.distributed import Preemption, barrier, owner, several
from pefx.mesh import on_mesh
from pefx.serving.assembly import build_engine, read_parts
from pefx.serving.batch import Batch
from pefx.serving.engine import Way
from pefx.serving.formats import read_fingerprint, writer_version
from pefx.serving.journal import Journal
from pefx.serving.local_queue import LocalQueue
from pefx.serving.progress import Reporter
from pefx.store.catalog import Catalog

INTERRUPTED = 130  # what shells report for Ctrl-C


def serve_file(config: ServeConfig, requests: str | Path, out: str | Path) -> int:
    """Answer the request file `requests` in `out`, going on where an earlier start was cut. Returns an exit code.

    Raises PefxError, before anything is written, where a file, the config, the base or the catalog is not as it must
    be, or `out` belongs to another run. See `pefx.serving.journal` for what is written.
    """
    requests, out = Path(requests), Path(out)
    run: dict[str, Any] = {
        "requests": read_fingerprint(requests),
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name != "http"},
        # Other versions may give other bits.
        "software": {name: version(name) for name in ("jax", "jaxlib")} | writer_version(out),
    }
    Journal(out, run).check()
    catalog = None if config.catalog is None else Catalog.open_for_serving(config.catalog)
    parts = read_parts(config, catalog)
    run |= {"base": parts.digest, "tokenizer": parts.tokenizer.digest}
    with Journal(out, run, owner()) as journal, on_mesh(parts.mesh):
        journal.check()
        way = Way(seed=config.seed, lockstep=several())
        # What cannot be built must leave no trace of a run.
        engine = None if journal.complete else build_engine(config, parts, LocalQueue(), way)[0]
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
                return _answer(
                    Batch(requests, engine=engine, policies=parts.policies, journal=journal, reporter=reporter)
                )


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
