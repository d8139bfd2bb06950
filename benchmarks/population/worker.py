"""What `benchmarks.catalog` runs in processes of their own, so that memory and caches are those of one task alone.

`python -m benchmarks.population.worker TASK PLACE ...` prints one line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.population.people import drafts, name_of
from pefx.store.audit import audit
from pefx.store.catalog import Catalog


def build(place: str, base: str, begin: int, end: int) -> dict[str, Any]:
    """Commit users in bulk."""
    catalog = Catalog.open(place, create=True)
    next(drafts(0, 1, base))  # the pool is not the catalog's work
    start = time.perf_counter()
    count = sum(1 for _ in catalog.commit_many(drafts(begin, end, base)))
    return {"policies": count, "seconds": time.perf_counter() - start}


def single(place: str, base: str, begin: int, end: int) -> dict[str, Any]:
    """Commit users one by one."""
    catalog, times = Catalog.open(place), []
    for draft in drafts(begin, end, base):
        start = time.perf_counter()
        list(catalog.commit_many([draft]))
        times.append(time.perf_counter() - start)
    return {"commits": len(times), **_spread(times)}


def read(place: str, users: int, count: int) -> dict[str, Any]:
    """Open, then look up and load users that were not looked at before."""
    start = time.perf_counter()
    catalog = Catalog.open(place, read_only=True)
    opened = time.perf_counter() - start
    times = []
    for user in np.random.default_rng(1).choice(users, count, replace=False).tolist():
        start = time.perf_counter()
        catalog.load(catalog.serving(name_of(user)))
        times.append(time.perf_counter() - start)
    return {"open_seconds": opened, "loads": count, **_spread(times)}


def page(place: str) -> dict[str, Any]:
    """The first page of a search, which lists the keys once, and the pages behind it."""
    catalog, times, behind = Catalog.open(place, read_only=True), [], None
    for _ in range(20):
        start = time.perf_counter()
        behind = catalog.search(behind=behind)[-1].name
        times.append(time.perf_counter() - start)
    return {"first_ms": 1e3 * times[0], "later_ms": 1e3 * float(np.median(times[1:]))}


def audited(place: str) -> dict[str, Any]:
    """Audit everything."""
    start = time.perf_counter()
    found = audit(Catalog.open(place, read_only=True))
    return {
        "seconds": time.perf_counter() - start,
        "revisions": found.counts["revision"],
        "tensor_bytes": found.tensor_bytes,
        "faults": [f"{fault.key}: {fault.what}" for fault in found.faults],
    }


def _spread(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, (50, 99))
    return {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "per_second": len(times) / sum(times)}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": build, "single": single, "read": read, "page": page, "audit": audited,
}  # fmt: skip


def main(words: list[str]) -> None:
    """Run one task and print what it found."""
    task, *arguments = words
    found = TASKS[task](*[int(word) if word.isdigit() else word for word in arguments])
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
