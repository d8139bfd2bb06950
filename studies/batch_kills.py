"""Batch inference killed, starved and lied to: the answers are those of a run that nothing happened to.

`python -m studies.batch_kills` answers one file of requests over forty random adapters of the shipped base:
- undisturbed, to JSONL and to Parquet: what all else is compared with, byte for byte;
- killed (SIGKILL) at 20 random instants and started again, outputs in turn JSONL and Parquet;
- with no more room on the disk than for half of its log (a limit on the size of files: it needs no root);
- with the catalog gone for 30 seconds in its midst;
- with the weights of one revision changed by a bit.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec
from pefx.families.config_json import read_config
from pefx.loading import load_base
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft

ROOT = Path(__file__).parent.parent
BASE = ROOT / "assets" / "base"
SPEC = AdapterSpec(rank=2)
CORRUPT = "corrupt"
PATIENCE = 240.0  # seconds that a start may take
# Sets a limit and becomes another program, in a process of its own: forking from this one is not safe, jax has threads.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[1]),))
os.execv(sys.argv[2], sys.argv[2:])
"""
CONFIG = """
from pefx.config import ServeConfig
config = ServeConfig(name="kills", base={base!r}, catalog={catalog!r}, slots=4, max_rank=2, sequences=8,
                     step_tokens=64, host_cache_mb=1)
"""


@dataclass(frozen=True)
class Options:
    """How much."""

    kills: int = 20
    requests: int = 1200
    adapters: int = 40
    away: float = 30.0
    """Seconds that the catalog is gone."""
    seed: int = 0


def drafts(names: list[str]) -> list[Draft]:
    """A revision of random weights for each name."""
    model, digest = read_config(BASE), load_base(BASE)[1]
    made = []
    for seed, name in enumerate(names):
        rng, adapter = np.random.default_rng(seed), init_adapter(model, SPEC, seed)
        for pair in adapter.values():
            pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.1
        provenance: dict[str, Any] = {"step": 1, "seeds": {}, "config": {}, "data_fingerprint": "", "metrics": {}}
        made.append(Draft(policy=name, adapter=adapter, spec=SPEC, base=digest, **provenance))
    return made


def requests(options: Options, names: list[str]) -> list[dict[str, Any]]:
    """Requests for random policies, the base and one that is not there; one line in fifty asks for what cannot be."""
    rng = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    for i in range(options.requests):
        policy = rng.choice([*names, CORRUPT, None, "nobody"])
        row = {"id": f"r{i}", "policy": policy, "prompt": "def f(x):\n" * rng.randint(1, 3), "logprobs": True}
        rows.append({**row, "max_tokens": rng.randint(1, 8) if i % 50 else 0, "temperature": rng.choice([0.0, 1.0])})
    return rows


class World:
    """The files of the study, and starts of the batch over them."""

    def __init__(self, place: Path, options: Options):
        self.place, self.catalog = place, place / "catalog"
        names = [f"user-{i}" for i in range(options.adapters)]
        list(Catalog.open(self.catalog, create=True).commit_many(drafts(names)))
        before = set((self.catalog / "d").iterdir())
        list(Catalog.open(self.catalog).commit_many(drafts([CORRUPT])))
        self.blob = max(set((self.catalog / "d").iterdir()) - before, key=lambda path: path.stat().st_size)
        (place / "config.py").write_text(CONFIG.format(base=str(BASE), catalog=str(self.catalog)))
        lines = [json.dumps(row) for row in requests(options, names)]
        (place / "in.jsonl").write_text("\n".join(lines) + "\n")

    def start(self, out: Path, limit: int | None = None) -> subprocess.Popen:
        """A process that answers to `out`; what it says goes to `told`. `limit` bounds the size of its files, bytes."""
        command = [sys.executable, "-c", LIMITED, str(limit)] if limit is not None else []
        command += [sys.executable, "serve.py", str(self.place / "config.py")]
        command += ["--requests", str(self.place / "in.jsonl"), "--out", str(out)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.place / "programs")}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with (self.place / "told").open("wb") as told:
            return subprocess.Popen(command, env=environment, stderr=told, cwd=ROOT)

    @property
    def told(self) -> str:
        return (self.place / "told").read_text()

    def finish(self, out: Path, code: int = 0, limit: int | None = None) -> bytes:
        """Answer to `out` until the process ends, as it must with `code`. Returns what is in `out`."""
        process = self.start(out, limit)
        assert process.wait(PATIENCE) == code, f"exit {process.returncode}, wanted {code}: {self.told}"
        return out.read_bytes() if out.exists() else b""

    def wait_for(self, process: subprocess.Popen, ready: Callable[[], bool]) -> bool:
        """Whether `ready` came true before the process ended."""
        end = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None:
                return False
            assert time.monotonic() < end, self.told
            time.sleep(0.002)
        return True


def log_size(out: Path) -> int:
    log = Path(f"{out}.partial")
    return log.stat().st_size if log.exists() else 0


def check_once(answers: bytes, count: int) -> None:
    ids = [json.loads(line)["id"] for line in answers.splitlines()]
    assert ids == [f"r{i}" for i in range(count)], "answers are missing, doubled or out of order"


def kills(world: World, wanted: dict[str, bytes], options: Options) -> dict[str, Any]:
    """Kill starts, half of them of a run to JSONL, half to Parquet; where a run ends before, another begins."""
    rng, outs, kept = random.Random(options.seed), [], []
    for ending in ("jsonl", "parquet"):
        killed = 0
        while killed < options.kills // 2:
            out = world.place / f"killed-{len(outs)}.{ending}"
            outs.append(out)
            while killed < options.kills // 2 and kill(world, out, killed, rng):
                killed += 1
                kept.append(log_size(out))
                print(f"{out.name}: {killed} kills, log of {kept[-1]:,} bytes", end="\r", file=sys.stderr)
            assert world.finish(out) == wanted[ending], f"{out.name} differs from the undisturbed run"
    return {"kills": len(kept), "outputs": len(outs), "logs": kept}


def kill(world: World, out: Path, turn: int, rng: random.Random) -> bool:
    """Start and kill, three times of five soon after some answers, else at any time. False if it ended before."""
    process, enough = world.start(out), log_size(out) + rng.randint(100, 4000)
    if turn % 5 == 4:
        time.sleep(rng.uniform(0, 5))
    else:
        world.wait_for(process, lambda: log_size(out) > enough or out.exists())
        time.sleep(rng.uniform(0, 3 if turn % 5 == 3 else 0.3))
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == (0 if ended else -signal.SIGKILL), world.told
    return not ended


def full_disk(world: World, wanted: bytes) -> dict[str, Any]:
    """Files may grow to half of the answers, then to just less than all; then there is room."""
    out, stops = world.place / "full.jsonl", []
    for limit in (len(wanted) // 2, len(wanted) * 5 // 4):
        world.finish(out, code=2, limit=limit)
        assert "cannot be written: File too large; what is answered is kept" in world.told, world.told
        assert not out.exists()
        stops.append(log_size(out))
    assert world.finish(out) == wanted
    return {"stopped_at_bytes": stops, "then": "the same bytes"}


def catalog_gone(world: World, wanted: bytes, options: Options) -> dict[str, Any]:
    """The catalog's directory is renamed away while a batch runs, and back."""
    out, away = world.place / "gone.jsonl", world.place / "away"
    process = world.start(out)
    assert world.wait_for(process, lambda: log_size(out) > len(wanted) // 8), world.told
    world.catalog.rename(away)
    gone = time.monotonic()
    code = process.wait(PATIENCE)
    stopped, told = time.monotonic() - gone, world.told.strip().splitlines()[-1]
    assert code == 2, f"exit {code}: {told}"
    assert "is not any more" in told, told
    kept = log_size(out)
    world.finish(out, code=2)  # started again too early: refused, and nothing lost
    assert log_size(out) == kept
    time.sleep(max(0.0, options.away - (time.monotonic() - gone)))
    away.rename(world.catalog)
    assert world.finish(out) == wanted
    return {"stopped_after_seconds": round(stopped, 1), "told": told.replace(str(world.place), "..."), "kept": kept}


def corrupt(world: World, wanted: bytes) -> dict[str, Any]:
    """A bit of one revision's weights is turned: its requests get an error each, the others their answers."""
    content = bytearray(world.blob.read_bytes())
    content[len(content) // 2] ^= 1
    world.blob.write_bytes(content)
    found = [json.loads(line) for line in world.finish(world.place / "corrupt.jsonl").splitlines()]
    whole = [json.loads(line) for line in wanted.splitlines()]
    refused = [row for row, before in zip(found, whole, strict=True) if before.get("policy") == CORRUPT]
    assert refused
    assert {row["error"]["type"] for row in refused} == {"damaged"}, refused[0]
    assert all(a == b for a, b in zip(found, whole, strict=True) if b.get("policy") != CORRUPT)
    return {"refused": len(refused), "answered": len(found) - len(refused)}


def main(options: Options) -> None:
    """All parts; prints what was done."""
    place = Path(tempfile.mkdtemp())
    try:
        world, begun = World(place, options), time.monotonic()
        wanted = {ending: world.finish(place / f"whole.{ending}") for ending in ("jsonl", "parquet")}
        check_once(wanted["jsonl"], options.requests)
        print(json.dumps({"undisturbed": {"requests": options.requests, "bytes": len(wanted["jsonl"])}}), flush=True)
        print(json.dumps({"killed": kills(world, wanted, options)}), flush=True)
        print(json.dumps({"full_disk": full_disk(world, wanted["jsonl"])}), flush=True)
        print(json.dumps({"catalog_gone": catalog_gone(world, wanted["jsonl"], options)}), flush=True)
        print(json.dumps({"corrupt": corrupt(world, wanted["jsonl"])}), flush=True)
        print(json.dumps({"seconds": round(time.monotonic() - begun)}))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
