"""Writers of a catalog killed at random instants, and writers that race: nothing partial, nothing lost.

`python -m studies.catalog_kills` kills 100 writers: bulk ones, single ones, and such that retire and branch, each with
garbage collection running beside it (which is killed as well, every third time). After each kill a fresh reader must
find every acknowledged revision with its bits, no partial one, a clean audit, and the cut commit must succeed when it
is tried again. Then four processes commit 10,000 revisions each to the same hundred policies.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft

ROOT = Path(__file__).parent.parent
SPEC = AdapterSpec(rank=1, targets=("q_proj", "v_proj"))
BASE = "sha256:" + "0" * 64
USERS, CYCLE = 40, 5  # policies of a writer; revisions of a policy before it is retired
SHARED = 100  # policies that racers share
MODES = ("bulk", "single", "life")

WRITER = "import sys; from studies.catalog_kills import {0}; {0}(*sys.argv[1:])"


@dataclass(frozen=True)
class Options:
    """How much."""

    kills: int = 100
    racers: int = 4
    revisions: int = 10_000
    seed: int = 0


def adapter(value: int) -> dict[str, dict[str, np.ndarray]]:
    """An adapter whose bits follow from `value`, 6 KB."""
    rng = np.random.default_rng(value)
    return {
        site: {factor: rng.normal(size=(6, 1, 64)).astype(np.float32) for factor in ("a", "b")} for site in SPEC.targets
    }


def draft(policy: str, value: int) -> Draft:
    return Draft(
        policy=policy,
        adapter=adapter(value),
        spec=SPEC,
        base=BASE,
        step=value,
        seeds={"run": value},
        config={"value": value},
        data_fingerprint="",
        metrics={},
    )


def bulk(place: str, round: str) -> None:
    """Commits hundreds in a transaction, for ever, and says what is committed."""
    catalog, value = Catalog.open(place), int(round) * 1_000_000
    while True:
        drafts = (draft(f"bulk/{round}-{value}-{i}", value + i) for i in range(300))
        for revision in catalog.commit_many(drafts):
            print(revision.key, revision.step, flush=True)
        value += 300


def single(place: str, round: str) -> None:
    """Commits one by one, for ever."""
    catalog, value = Catalog.open(place), int(round) * 1_000_000
    while True:
        for revision in catalog.commit_many([draft(f"single/{value % USERS}", value)]):
            print(revision.key, revision.step, flush=True)
        value += 1


def life(place: str, round: str) -> None:
    """Commits, branches, and retires what was branched from, for ever: garbage for the collector."""
    from pefx.store.lifecycle import branch, retire  # noqa: PLC0415  (only this writer's)

    catalog, value = Catalog.open(place), int(round) * 1_000_000
    while True:
        name = f"life/{round}-{value}"
        for revision in catalog.commit_many(draft(name, value + i) for i in range(CYCLE)):
            print(revision.key, revision.step, flush=True)
        kept = branch(catalog, name, f"kept/{round}-{value}", CYCLE)
        print(kept.key, kept.step, flush=True)
        retire(catalog, name)
        print("retired", name, flush=True)
        value += CYCLE


def collector(place: str) -> None:
    """Collects garbage for ever."""
    from datetime import timedelta  # noqa: PLC0415

    from pefx.store.garbage import collect  # noqa: PLC0415

    catalog = Catalog.open(place)
    while True:
        collect(catalog, timedelta(0))


def racer(place: str, worker: str, revisions: str) -> None:
    """Commits so many revisions to policies that others commit to as well."""
    catalog, number, rng = Catalog.open(place, create=True), int(worker), random.Random(worker)
    conflicts = 0
    for i in range(int(revisions)):
        value = number * 10_000_000 + i
        one = draft(f"shared/{rng.randrange(SHARED)}", value)
        while True:
            try:
                (revision,) = catalog.commit_many([one])
                break
            except PefxError as error:
                if error.kind != "conflict":
                    raise
                conflicts += 1
        print(revision.key, value)
    print("conflicts", conflicts)


def start(function: str, *words: object, out: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER.format(function), *map(str, words)]
    with open(out or os.devnull, "wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, cwd=ROOT)


def kills(place: Path, options: Options) -> Counter[str]:
    """Kill writers; raises AssertionError where anything is not as it must be."""
    rng, seen = random.Random(options.seed), Counter()
    said: dict[str, int] = {}  # acknowledged: the value by revision
    retired: set[str] = set()
    Catalog.open(place, create=True)
    with ExitStack() as cleanup:
        for round in range(options.kills):
            mode, told = MODES[round % len(MODES)], place.with_name(f"told-{round}")
            beside = start("collector", place)
            cleanup.callback(beside.kill)
            writer = start(mode, place, round, out=told)
            cleanup.callback(writer.kill)
            limit = time.monotonic() + 60
            while not told.stat().st_size and time.monotonic() < limit:
                assert writer.poll() is None, f"{mode} ended by itself"
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
            if round % 3 == 0:
                beside.kill()
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            lines = [line.split() for line in told.read_text().splitlines(keepends=True) if line.endswith("\n")]
            retired |= {words[1] for words in lines if words[0] == "retired"}
            said |= {key: int(value) for key, value in lines if key != "retired"}
            seen[mode] += 1
            check(place, said, retired, seen)
            again = f"{mode}/again"
            list(Catalog.open(place).commit_many([draft(again, round + i) for i in range(2)]))
            beside.kill()
            beside.wait()
            print(f"{round + 1}/{options.kills} kills, {len(said):,} acknowledged revisions", end="\r", file=sys.stderr)
    return seen


def check(place: Path, said: dict[str, int], retired: set[str], seen: Counter[str]) -> None:
    """Everything acknowledged is there, bit for bit, unless its policy was retired since; and the audit is clean."""
    catalog = Catalog.open(place, read_only=True)
    found = audit(catalog)
    assert not found.faults, found.faults[:3]
    # The last retirement may have been cut from what the writer said.
    over = retired | {name for name in {key.split("@")[0] for key in said} if catalog.policy(name).state == "retired"}
    for key in random.sample(sorted(said), min(len(said), 300)):
        name, number = key.split("@")
        if name not in over:
            revision = catalog.get(name, int(number))
            assert revision.step == said[key]
            weights, wanted = catalog.load(revision), adapter(said[key])
            assert all((weights[s][f] == wanted[s][f]).all() for s in wanted for f in wanted[s])
            seen["loads"] += 1
    missing = [key for key in said if key.split("@")[0] not in over and not catalog.space.read(record(key)).value]
    assert not missing, missing[:3]


def record(key: str) -> str:
    name, number = key.split("@")
    return f"revision/{name}@{int(number):010d}"


def races(place: Path, options: Options) -> dict[str, float]:
    """Let racers race; raises AssertionError where a revision is missing, doubled, or out of order."""
    begun = time.perf_counter()
    told = [place.with_name(f"racer-{worker}") for worker in range(options.racers)]
    Catalog.open(place, create=True)
    racers = [start("racer", place, worker, options.revisions, out=told[worker]) for worker in range(options.racers)]
    assert [racer.wait() for racer in racers] == [0] * options.racers
    seconds = time.perf_counter() - begun
    acknowledged: dict[str, int] = {}
    conflicts = 0
    for file in told:
        last: dict[str, int] = {}
        for line in file.read_text().splitlines():
            key, value = line.split()
            if key == "conflicts":
                conflicts += int(value)
                continue
            name, number = key.split("@")
            assert key not in acknowledged, f"{key} was given twice"
            assert int(number) > last.get(name, 0), f"{key} is not after {last[name]}"
            last[name], acknowledged[key] = int(number), int(value)
    assert len(acknowledged) == options.racers * options.revisions
    catalog = Catalog.open(place, read_only=True)
    stored = {revision.key: revision.step for name in catalog.policies() for revision in catalog.log(name)}
    assert stored == acknowledged, "the catalog holds something else than was acknowledged"
    for name in catalog.policies():
        assert [revision.number for revision in catalog.log(name)] == list(range(1, catalog.policy(name).head + 1))
    found = audit(catalog)
    assert not found.faults, found.faults[:3]
    return {"revisions": len(stored), "seconds": round(seconds, 1), "conflicts": conflicts}


def main(options: Options) -> None:
    """Both parts; prints what was done."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"killed": kills(Path(folder) / "killed", options)}))
        print(json.dumps({"raced": races(Path(folder) / "raced", options)}))


if __name__ == "__main__":
    main(tyro.cli(Options))
