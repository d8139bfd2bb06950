"""Engines over catalogs of made-up adapters, in this process: what benchmarks of serving have in common."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pefx.adapters.methods.table import leaf_shapes
from pefx.config import AdapterSpec, ServeConfig
from pefx.families.config_json import read_config
from pefx.huggingface import base_digest
from pefx.mesh import on_mesh
from pefx.safetensors_files import read_headers
from pefx.serving.assembly import Parts, build_engine, read_parts
from pefx.serving.engine import Engine, Way
from pefx.serving.fair_queue import FairQueue, Queue
from pefx.serving.jobs import Answered
from pefx.serving.policies import Policies
from pefx.serving.requests import Request
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft

SIZE = 0.02  # of the numbers of an adapter: about what training makes of them


def name_of(index: int) -> str:
    """The policy of a made-up adapter."""
    return f"user-{index:04d}"


def made_up(shapes: dict[str, dict[str, tuple[int, ...]]], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """An adapter of these shapes whose delta is not zero."""
    rng = np.random.default_rng(seed)
    return {
        site: {factor: SIZE * rng.standard_normal(shape, np.float32) for factor, shape in pair.items()}
        for site, pair in shapes.items()
    }


def commit_adapters(place: Path, base: Path, spec: AdapterSpec, indices: Sequence[int]) -> None:
    """Commits one revision of each `name_of(index)` to the catalog at `place`, which is made if there is none."""
    shape = read_config(base)
    digest, shapes = base_digest(shape, read_headers(base)), leaf_shapes(shape, spec)
    drafts = (
        Draft(
            policy=name_of(index),
            adapter=made_up(shapes, index),
            spec=spec,
            base=digest,
            step=1,
            seeds={"run": index},
            config={},
            data_fingerprint="",
            metrics={},
        )
        for index in indices
    )
    for _ in Catalog.open(place, create=True).commit_many(drafts):
        pass


@contextmanager
def loaded(config: ServeConfig) -> Iterator[Parts]:
    """The parts that engines of `config` share; they are built and run within."""
    catalog = None if config.catalog is None else Catalog.open(config.catalog, read_only=True)
    parts = read_parts(config, catalog)
    with on_mesh(parts.mesh):
        yield parts


@contextmanager
def engine_of(config: ServeConfig, parts: Parts, queue: Queue | None = None) -> Iterator["Line"]:
    """An engine for `config`, as the server has it, or with another `queue`."""
    engine, _ = build_engine(config, parts, queue or FairQueue(), Way(seed=config.seed))
    with closing(engine):
        yield Line(engine, parts.policies)


@dataclass
class Line:
    """An engine and the policies it serves."""

    engine: Engine
    policies: Policies
    asked: int = 0

    def submit(self, request: Request) -> int:
        """Queues a request; returns its handle."""
        self.asked += 1
        revision = None if request.policy is None else self.policies.resolve(request.policy, request.revision)
        self.engine.submit(self.asked, request, revision)
        return self.asked

    def answer(self, requests: Sequence[Request], together: int = 0) -> list[Answered]:
        """Answers all, in the order in which they end. `together`: so many at a time, and the next when all are over.

        0: all are queued at once, and enter as others leave. Raises RuntimeError for a request with an error.
        """
        done: list[Answered] = []
        size = together or len(requests)
        for first in range(0, len(requests), size):
            for request in requests[first : first + size]:
                self.submit(request)
            while not self.engine.idle:
                answered = self.engine.step()
                done += answered
                if not answered:
                    self.engine.wait(0.01)  # for weights; returns at once where anything runs
        failed = [answered.row["error"]["message"] for answered in done if "error" in answered.row]
        if failed or len(done) != len(requests):
            raise RuntimeError(
                f"{len(requests) - len(done)} requests without an answer, {len(failed)} failed: {failed[:1]}"
            )
        return done
