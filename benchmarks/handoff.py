"""From a trained adapter to its first token: as a revision of a catalog, and merged into a checkpoint that is reloaded.

`pefx bench handoff`, or from the root `python -m benchmarks.handoff --repeats 9`. Two bases: the shipped one, and a
random one of half a billion parameters. Both ways begin with the adapter in the trainer's bank, after its step, and end
when a server that is running can use it ("load"), or has drawn a token with it. All steps are compiled before; the ways
take turns. Then an adapter of a 30B-A3B base on disk: packed, and in published layouts. Last, how loads of a host cache
are shared, run side by side, and are refused.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx

from benchmarks.population.layouts import layouts
from benchmarks.population.sharing import sharing
from pefx.adapters.bank import Bank, empty_bank, load_adapter, read_adapter
from pefx.adapters.checkpoint_merge import merge_checkpoint
from pefx.adapters.methods.table import Adapter, leaf_shapes
from pefx.config import AdapterSpec, MeshConfig, ModelConfig, ServeConfig
from pefx.data.tokenizer import Tokenizer
from pefx.huggingface import save_base
from pefx.loading import load_base
from pefx.model import Base
from pefx.serving.assembly import Parts, bank_room, build_engine
from pefx.serving.engine import Engine, Way
from pefx.serving.fair_queue import FairQueue
from pefx.serving.policies import Policies
from pefx.serving.requests import Request
from pefx.store.catalog import Catalog

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "assets" / "base"
LARGE = ModelConfig(
    vocab_size=4096, hidden=1024, layers=8, heads=16, kv_heads=4, head_size=64, dense_hidden=2816, expert_hidden=512,
    experts=36, experts_per_token=4, dense_layers=(0,), tied_embedding=False,
)  # fmt: skip
SPEC = AdapterSpec(rank=8, alpha=16.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
PROMPT = 16


@dataclass
class World:
    """A base on disk, a trainer's bank, and a server that runs."""

    directory: Path
    base: Base
    digest: str
    bank: Bank
    catalog: Catalog
    reader: Catalog
    policies: Policies
    served: Bank
    engine: Engine
    place: Path
    turn: int = 0

    def adapter(self) -> Adapter:
        """What the trainer has: read from its bank."""
        return read_adapter(self.bank, 0, self.base.config, SPEC)

    def next_step(self) -> None:
        """The trainer's adapter is another one."""
        self.turn += 1
        rng = np.random.default_rng(self.turn)
        shapes = leaf_shapes(self.base.config, SPEC)
        factors = {s: {k: rng.normal(0, 0.02, x).astype(np.float32) for k, x in p.items()} for s, p in shapes.items()}
        self.bank = jax.block_until_ready(load_adapter(self.bank, 0, factors, SPEC))

    def token(self, engine: Engine, policy: str | None) -> None:
        """One token from the server."""
        rng = np.random.default_rng(self.turn)
        prompt = tuple(rng.integers(5, 4000, PROMPT).tolist())
        request = Request("1", prompt, policy, max_tokens=1, temperature=0.0)
        revision = None if policy is None else self.policies.resolve(policy, None)
        engine.submit(0, request, revision)
        while not engine.idle:
            engine.step()
            engine.wait(1.0)


def world(directory: Path, place: Path) -> World:
    """Everything that runs before a step is done."""
    base, digest = load_base(directory, "float32")
    catalog = Catalog.open(place / "catalog", create=True)
    config = ServeConfig("handoff", str(directory), catalog=str(place / "catalog"), slots=4, sequences=4)
    tokenizer = Tokenizer.load(SHIPPED)
    reader = Catalog.open(place / "catalog", read_only=True)
    policies = Policies(reader, digest, bank_room(config))
    engine, _ = build_engine(config, Parts(base, digest, tokenizer, policies, MeshConfig(1)), FairQueue(), Way())
    banks = empty_bank(base.config, SPEC, 1), empty_bank(base.config, SPEC, 4)
    return World(directory, base, digest, banks[0], catalog, reader, policies, banks[1], engine, place)


def as_revision(now: World) -> tuple[float, float]:
    """Seconds until the slot holds the adapter, and until its first token."""
    start = time.perf_counter()
    revision = now.catalog.commit(
        "ann", adapter=now.adapter(), spec=SPEC, base=now.digest, step=now.turn, seeds={}, config={},
        data_fingerprint="", metrics={},
    )  # fmt: skip
    found = now.policies.resolve("ann", None)
    assert found.content_hash == revision.content_hash
    now.served = jax.block_until_ready(load_adapter(now.served, 0, now.reader.load(found), SPEC))
    ready = time.perf_counter() - start
    now.token(now.engine, "ann")
    return ready, time.perf_counter() - start


def as_checkpoint(now: World) -> tuple[float, float]:
    """The same by a merged checkpoint that is loaded in place of the base."""
    target = now.place / "merged"
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    merge_checkpoint(now.directory, now.adapter(), SPEC, target)
    base, digest = load_base(target, "float32")
    jax.block_until_ready(jax.tree.leaves(base))
    ready = time.perf_counter() - start
    config = ServeConfig("handoff", str(target), slots=4, sequences=4)
    policies = Policies(None, digest, bank_room(config))
    parts = Parts(base, digest, Tokenizer.load(SHIPPED), policies, MeshConfig(1))
    engine, _ = build_engine(config, parts, FairQueue(), Way())
    now.token(engine, None)
    return ready, time.perf_counter() - start


def handoff(directory: Path, repeats: int) -> dict[str, float]:
    """Medians of both ways, and their ratios."""
    ways: dict[str, Callable[[World], tuple[float, float]]] = {"revision": as_revision, "checkpoint": as_checkpoint}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        now = world(directory, Path(folder))
        for round in range(repeats + 1):
            for name, way in ways.items():
                now.next_step()
                took = way(now)
                if round:
                    times[name].append(took)
    found = {}
    for at, what in enumerate(("load", "first_token")):
        for name, took in times.items():
            found[f"{name}_{what}_ms"] = 1e3 * statistics.median(one[at] for one in took)
        found[f"{what}_ratio"] = found[f"checkpoint_{what}_ms"] / found[f"revision_{what}_ms"]
    return found


def main(repeats: int = 5) -> None:
    """All three parts, a line of JSON each."""
    print(json.dumps({"shipped": handoff(SHIPPED, repeats)}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "large"
        save_base(Base(LARGE, nnx.Rngs(0)), place, SHIPPED / "tokenizer.json", precision="bfloat16")
        print(json.dumps({"large": handoff(place, repeats)}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"layouts": layouts(Path(folder), repeats)}), flush=True)
        print(json.dumps({"sharing": sharing(Path(folder))}), flush=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
