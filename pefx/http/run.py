"""`serve.py CONFIG --http HOST:PORT` without its command line: the engine of a config, served by HTTP."""

import gc
from functools import partial
from pathlib import Path

from pefx.config import ServeConfig
from pefx.distributed import several
from pefx.errors import PefxError
from pefx.http.served import Served
from pefx.http.server import serve_http
from pefx.mesh import on_mesh
from pefx.serving.assembly import build_engine, read_parts
from pefx.serving.engine import Way
from pefx.serving.fair_queue import FairQueue
from pefx.store.catalog import Catalog
from pefx.store.readiness import Readiness


def serve_config(config: ServeConfig) -> int:
    """Serve until a signal; returns an exit code. PefxError where it cannot begin."""
    if several():
        raise PefxError("a server is one process; to serve from several hosts, start one on each")
    catalog = None if config.catalog is None else Catalog.open_for_serving(config.catalog)
    parts = read_parts(config, catalog)
    way = Way(seed=config.seed, unavailable=frozenset(), check_every=config.http.check_every)
    with on_mesh(parts.mesh):
        engine, tiers = build_engine(config, parts, FairQueue(), way)
        if config.http.warm:
            print(f"{config.name}: compiling steps", flush=True)
            engine.warm()
    # What is there now stays: a collection that looked through all of it would hold every answer up.
    gc.collect()
    gc.freeze()
    served = Served(
        name=Path(config.base).name,
        digest=parts.digest,
        context=parts.base.config.context,
        engine=engine,
        tokenizer=parts.tokenizer,
        policies=parts.policies,
        within=partial(on_mesh, parts.mesh),
        catalog=catalog,
        readiness=None if catalog is None else Readiness(tiers, parts.policies.check),
    )
    return serve_http(served, config.http)
