"""pefx.serving.assembly: a config becomes an engine of its sizes, or is refused."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import MeshConfig
from pefx.errors import PefxError
from pefx.mesh import on_mesh
from pefx.serving.assembly import bank_room, build_engine, read_parts
from pefx.serving.engine import Way
from pefx.serving.fair_queue import FairQueue
from pefx.store.catalog import Catalog
from tests.serving_small import MODEL, make_config


def test_sizes_are_those_of_the_config(tmp_path: Path):
    config = replace(make_config(tmp_path), mesh=MeshConfig(2), pages=30)
    parts = read_parts(config, Catalog.open(str(config.catalog), read_only=True))
    assert parts.mesh.rows == 2
    with on_mesh(parts.mesh):
        engine, tiers = build_engine(config, parts, FairQueue(), Way())
    with closing(engine):
        state = engine.state()
        assert (state.seats, state.pages) == (8, 30)
        assert tiers.state(parts.policies.resolve("alice", None)) == "cold"
    assert bank_room(config).rank == config.max_rank


def test_what_does_not_divide_is_refused(tmp_path: Path):
    config = make_config(tmp_path)
    with pytest.raises(PefxError, match="experts"):
        read_parts(replace(config, mesh=MeshConfig(1, expert=MODEL.experts + 1)), None)
