"""Pictures of the pages of an example catalog, as `pefx catalog web` shows them in a browser.

Names, times and numbers of the example are made up. Needs chromium on PATH; without it nothing is drawn.

    python -m studies.catalog_pages [--out docs]
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pefx.config import AdapterSpec
from pefx.store.blob import Adapter
from pefx.store.catalog import Catalog
from pefx.store.encoding import encode
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, move_stage, retire, retire_revision, set_alias
from pefx.store.names import policy_key, revision_key
from pefx.store.scores import record_score
from pefx.store.sessions import Wanted, move_sessions, open_sessions
from pefx.store.stages import Action

ROOT = Path(__file__).resolve().parent.parent
BASE = "sha256:" + "5c1e9f0b" * 8
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
MAIN = "support/acme"
POPULATION = [  # name, owner, tags, rank, revisions
    ("code/go-review", "platform", ("code",), 16, 5),
    ("code/python-idioms", "platform", ("code", "beta"), 16, 8),
    ("code/rust-review", "platform", ("code",), 16, 3),
    ("legal/contract-summary", "legal", ("reviewed",), 32, 6),
    ("legal/plain-language", "legal", (), 32, 2),
    ("support/globex", "support", ("customer",), 8, 7),
    ("support/initech", "support", ("customer",), 8, 4),
    ("users/ada/letters", "ada", ("personal",), 4, 9),
    ("users/ada/notes", "ada", ("personal",), 4, 12),
    ("users/emil/chess-coach", "emil", ("personal", "beta"), 4, 6),
    ("users/ines/recipes", "ines", ("personal",), 4, 3),
    ("users/ines/travel", "ines", ("personal",), 4, 1),
    ("users/mara/diary", "mara", ("personal", "private"), 8, 15),
    ("users/mara/thesis", "mara", ("personal",), 8, 4),
    ("users/tom/lyrics", "tom", ("personal",), 4, 2),
]


class Example:
    """A catalog that grows: each commit trains a little further."""

    def __init__(self, folder: Path):
        self.catalog = Catalog.open(folder, create=True)
        self.random = np.random.default_rng(7)
        self.weights: dict[str, Adapter] = {}

    def further(self, before: Adapter | None, rank: int, size: float) -> Adapter:
        """Weights moved by so much from `before`."""
        moved = {
            site: {factor: self.random.normal(size=(4, rank, 32)).astype(np.float32) for factor in ("a", "b")}
            for site in TARGETS
        }
        if before is None:
            return moved
        return {s: {f: before[s][f] + np.float32(size) * moved[s][f] for f in ("a", "b")} for s in TARGETS}

    def commit(self, name: str, rank: int, number: int, parent: str | None, loss: float, **more: Any) -> None:
        adapter = self.further(self.weights.get(parent or ""), rank, 1.0 if parent is None else 0.5 / number)
        self.weights[f"{name}@{number}"] = adapter
        revision = self.catalog.commit(
            name,
            adapter=adapter,
            spec=AdapterSpec(rank=rank, alpha=2.0 * rank, targets=TARGETS),
            base=BASE,
            step=200 * number,
            seeds={"data": 11, "run": 3},
            config={"name": name.split("/")[-1], "optimizer": {"learning_rate": 0.004, "clip": 1.0}, "batch_rows": 8},
            data_fingerprint="sha256:" + f"{number:02x}" * 32,
            metrics={"heldout": {"nats_per_token": round(loss, 4)}},
            parent=parent,
            **more,
        )
        findings: tuple[tuple[str, Literal["isolated", "shared"], float], ...] = (
            ("judge-2", "shared", 0.86 - 0.24 * (loss - 1.5)),
            ("judge-2", "isolated", 0.855 - 0.24 * (loss - 1.5)),
            ("exact-match", "shared", 0.71 - 0.4 * (loss - 1.5)),
        )
        for scorer, path, found in findings:
            value = {"helpfulness" if scorer == "judge-2" else "accuracy": round(found + self.noise(0.012), 3)}
            record_score(
                self.catalog,
                revision,
                renderer="chat-v1",
                scorer=scorer,
                path=path,
                metrics=value,
                samples=240,
                data_fingerprint="sha256:" + "e7" * 32,
            )

    def grow(self, name: str, revisions: int, rank: int = 8, start: int = 1, floor: float = 1.45, **more: Any) -> None:
        for number in range(start, start + revisions):
            loss = floor + 0.9 * float(np.exp(-number / 3.5)) + self.noise(0.015)
            parent = f"{name}@{number - 1}" if number > 1 else None
            self.commit(name, rank, number, parent, loss, **(more if number == start else {}))

    def noise(self, size: float) -> float:
        return float(self.random.normal()) * size


def build(folder: Path) -> Catalog:
    """The example: a population, and one policy with branches of branches."""
    example = Example(folder)
    catalog = example.catalog
    for name, owner, tags, rank, revisions in POPULATION:
        example.grow(name, revisions, rank, floor=1.5 + example.noise(0.1), owner=owner, tags=tags)
    example.grow(MAIN, 9, owner="support", tags=("customer", "reviewed"))
    for source, at, name, revisions, floor in (
        (MAIN, 3, "support/acme-german", 6, 1.52),
        (MAIN, 5, "support/acme-returns", 4, 1.4),
        (MAIN, 8, "lab/acme-long-answers", 3, 1.38),
        ("support/acme-german", 4, "lab/acme-german-formal", 2, 1.5),
    ):
        branch(catalog, source, name, at, owner="support")
        example.weights[f"{name}@1"] = example.weights[f"{source}@{at}"]
        example.grow(name, revisions - 1, start=2, floor=floor)
    example.grow(MAIN, 3, start=10, floor=1.42)
    example.commit(MAIN, 8, 13, f"{MAIN}@11", 1.44)
    for alias, number in (("prod", 11), ("canary", 13)):
        set_alias(catalog, MAIN, alias, number)
    set_alias(catalog, "support/acme-german", "prod", 5)
    steps: tuple[Action, ...] = ("register", "prewarm", "expose")
    for name, number in ((MAIN, 11), (MAIN, 13), ("support/acme-german", 5)):
        for action in steps:
            move_stage(catalog, name, number, action)
    retire_revision(catalog, MAIN, 12)
    wanted = [Wanted(MAIN, BASE, catalog.policy(MAIN).spec, f"{MAIN}@13")]
    sessions = open_sessions(catalog, "runs/acme-july", wanted)
    move_sessions(catalog, sessions, "checkpointed", 2750, "runs/acme-july/checkpoints/2750")
    open_sessions(catalog, "runs/new-users", [Wanted("users/yuki/haiku", BASE, AdapterSpec(rank=4), owner="yuki")])
    retire(catalog, "users/tom/lyrics")
    age(catalog)
    return catalog


def age(catalog: Catalog) -> None:
    """Records as of some days ago: a catalog made in a second would have no history to look at."""
    now = datetime.now(UTC)
    spread = np.random.default_rng(5)
    for policy in catalog.search():
        log = catalog.log(policy.name)
        newest, between = float(spread.exponential(6.0)), float(spread.uniform(0.4, 3.0))
        days = [newest + (len(log) - 1 - index) * between for index in range(len(log))]
        times = [(now - timedelta(days=d)).isoformat(timespec="seconds") for d in days]
        writes = [
            Write(revision_key(old.policy, old.number), encode(replace(old, created=at, code_version="0.1.0")))
            for old, at in zip(log, times, strict=True)
        ]
        if times:
            changed = replace(policy, created=times[0], changed=times[-1])
            writes.append(Write(policy_key(policy.name), encode(changed)))
        if writes:
            catalog.space.transact(writes)


def picture(address: str, file: Path, height: int) -> None:
    """What a browser shows at `address`, in few enough colours to be small."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size=1240,{height}"]
        command += [f"--screenshot={file.resolve()}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(file) as shown:
        shown.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


def main() -> int:
    """Builds the example, serves it, and draws two of its pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "catalog_pages")
    given = parser.parse_args()
    if shutil.which("chromium") is None:
        print("no chromium on PATH: nothing is drawn")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "catalog")
        command = [sys.executable, "-m", "pefx.cli", "catalog", "web", "catalog", "--port", "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = str(server.stdout and server.stdout.readline()).split(" ")[0]
                if not address.startswith("http"):
                    return 1
                picture(address, given.out / "catalog-web.png", 1040)
                picture(f"{address}/policy/{MAIN}", given.out / "catalog-policy.png", 1500)
            finally:
                server.send_signal(signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
