"""A catalog of a million policies: built, audited, read, written to and served from.

`pefx bench catalog`, or from the root `python -m benchmarks.catalog --policies 100000`. Every task runs in a process of
its own; the build in two, each with half of the users. What is measured goes to the error stream as it comes, and at
the end as a table; bounds stand beside it. The catalog is removed afterwards, unless `--keep`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.population.people import BASE, tensor_bytes
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.huggingface import base_digest
from pefx.safetensors_files import read_headers

ROOT = Path(__file__).parent.parent
SMALL = 1000  # policies of the catalog to serve beside
SINGLE, READS = 1000, 2000
STORED_RATIO = 1.15


@dataclass(frozen=True)
class Options:
    """What to build, and where."""

    policies: int = 1_000_000
    """Policies of the large catalog."""
    place: Path = ROOT / "runs" / "catalog_benchmark"
    """Where it is built."""
    keep: bool = False
    """Leave the catalogs there."""


def main(options: Options) -> None:
    """Runs all parts in turn; writes `results.json` beside the catalogs."""
    check_disk(options)
    shutil.rmtree(options.place, ignore_errors=True)
    options.place.mkdir(parents=True)
    large, small = (str(options.place / name) for name in ("large", "small"))
    count, base = options.policies, base_digest(read_config(BASE), read_headers(BASE))
    found: dict[str, Any] = {"policies": count, "tensor_bytes_each": tensor_bytes()}
    try:
        found["small"] = task("build", small, base, 0, SMALL)
        found["build"] = build(large, base, count)
        found["audit"] = task("audit", large)
        stored = sum(file.stat().st_size for file in Path(large).rglob("*") if file.is_file())
        found["stored_ratio"] = stored / found["audit"]["tensor_bytes"]
        task("read", large, count, READS)  # what is read again is in the page cache, and in no other
        found["read"] = task("read", large, count, READS)
        found["page"] = task("page", large)
        found["single"] = task("single", large, base, count, count + SINGLE)
        served = run("benchmarks.population.serving", [large, str(count), small, str(SMALL)])
        found["serving"] = {"large": served[large], "small": served[small]}
    finally:
        (options.place / "results.json").write_text(json.dumps(found, indent=2) + "\n")
        if not options.keep:
            for place in (large, small):
                shutil.rmtree(place, ignore_errors=True)
    Console(width=110).print(table(found))


def check_disk(options: Options) -> None:
    """PefxError unless the disk has room."""
    place = options.place
    while not place.exists():
        place = place.parent
    needed, free = int(options.policies * tensor_bytes() * STORED_RATIO), shutil.disk_usage(place).free
    print(f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", file=sys.stderr, flush=True)
    if free < needed:
        raise PefxError(f"{options.place}: needs {needed:,} bytes, the disk has {free:,}; fewer with --policies")


def build(place: str, base: str, count: int) -> dict[str, Any]:
    """Two writers at once, each of half of the users; the catalog is made before, so that both find it."""
    halves = [(0, count // 2), (count // 2, count)]
    start = time.perf_counter()
    writers = [begin("build", place, base, *half) for half in halves]
    found = [ended(writer) for writer in writers]
    seconds = time.perf_counter() - start
    told = {
        "seconds": seconds,
        "per_second": sum(one["policies"] for one in found) / max(one["seconds"] for one in found),
        "peak_mb": max(one["peak_mb"] for one in found),
    }
    print(f"build: {json.dumps(told)}", file=sys.stderr, flush=True)
    return told


def task(name: str, *arguments: Any) -> dict[str, Any]:
    """One task of the worker; its result."""
    found = ended(begin(name, *arguments))
    print(f"{name}: {json.dumps(found)[:400]}", file=sys.stderr, flush=True)
    return found


def begin(name: str, *arguments: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.population.worker", name, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)


def run(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *arguments]
    return ended(subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def ended(process: subprocess.Popen) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise PefxError(f"{' '.join(map(str, process.args))}: ended with {process.returncode}")  # type: ignore[arg-type]
    return json.loads(out.splitlines()[-1])


def table(found: dict[str, Any]) -> Table:
    """What was measured, beside its bound."""
    audit, read, served = found["audit"], found["read"], found["serving"]
    ratio = {name: served["large"][name] / served["small"][name] for name in ("warm_step_ms", "warm_host_ms_per_token")}
    peak = max(found[name]["peak_mb"] for name in ("build", "audit", "read", "page", "single"))
    rows = [
        ("build, two writers", f"{found['build']['seconds']:.0f} s", "900 s"),
        ("bulk commits", f"{found['build']['per_second']:,.0f}/s", "20,000/s"),
        ("single commits", f"{found['single']['per_second']:,.0f}/s", "100/s"),
        ("audit of all", f"{audit['seconds']:.0f} s, {len(audit['faults'])} faults", "0 faults"),
        ("bytes stored / bytes of tensors", f"{found['stored_ratio']:.3f}", "1.15"),
        ("open", f"{1e3 * read['open_seconds']:.0f} ms", "1000 ms"),
        ("cold lookup and load, p50", f"{read['p50_ms']:.2f} ms", "1.5 ms"),
        ("cold lookup and load, p99", f"{read['p99_ms']:.2f} ms", "15 ms"),
        (
            "a page of 100: the first, later ones",
            f"{found['page']['first_ms']:.0f}, {found['page']['later_ms']:.1f} ms",
            "",
        ),
        ("most memory of any of these", f"{peak:,.0f} MB", "1,000 MB"),
        (f"warm step, {found['policies']:,} / {SMALL:,} policies", f"{ratio['warm_step_ms']:.3f}", "1.05"),
        ("host time per token, the same", f"{ratio['warm_host_ms_per_token']:.3f}", "1.05"),
    ]
    shown = Table(
        "what", title=f"{found['policies']:,} policies of {found['tensor_bytes_each']:,} bytes", title_justify="left"
    )
    for column in ("measured", "bound"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except PefxError as error:
        sys.exit(f"error: {error}")
