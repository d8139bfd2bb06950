"""How loads of a host cache are shared, run side by side, and are refused."""

import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.population.layouts import MODEL, SPEC, adapter
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.tiers import Tiers

BASE = "sha256:" + "1" * 64
MANY = 16
FAR = 0.1  # seconds that a bucket takes to answer


def sharing(place: Path) -> dict[str, float]:
    """Counts and seconds; each adapter has the twelfth of a 30B-A3B base's layers, 9 MB."""
    catalog = Catalog.open(place / "sharing", create=True)
    one = {site: {k: x[: MODEL.layers // 12] for k, x in pair.items()} for site, pair in adapter().items()}
    names = [f"user-{i}" for i in range(3 * MANY)]
    for i, name in enumerate(names):
        one[SPEC.targets[0]]["a"][0, 0, 0, 0] = i
        catalog.commit(
            name, adapter=one, spec=SPEC, base=BASE, step=0, seeds={}, config={}, data_fingerprint="", metrics={}
        )
    revisions = [catalog.serving(name) for name in names]
    found: dict[str, float] = {}

    def ask(tiers: Tiers, wanted: list) -> float:
        start = time.perf_counter()

        def one_of(revision) -> None:
            with tiers.request(revision) as weights:
                assert weights

        threads = [threading.Thread(target=one_of, args=(revision,)) for revision in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def fresh(**fields: Any) -> Tiers:
        return Tiers(catalog.load, 1 << 30, **fields)

    ask(fresh(), revisions)  # into the page cache
    found["one_load_seconds"] = min(ask(fresh(), revisions[i : i + 1]) for i in range(MANY))
    same = fresh()
    found["identical_seconds"] = ask(same, [revisions[0]] * MANY)
    found["identical_loads"] = same.counts().host.loads
    found["distinct_seconds"] = ask(fresh(), revisions[:MANY])
    found["distinct_ratio"] = found["distinct_seconds"] / found["one_load_seconds"]

    def from_afar(revision: Any) -> Any:
        time.sleep(FAR)
        return catalog.load(revision)

    far = [Tiers(from_afar, 1 << 30) for _ in range(2)]
    found["far_one_load_seconds"] = ask(far[0], revisions[:1])
    found["far_distinct_seconds"] = ask(far[1], revisions[:MANY])
    found["far_distinct_ratio"] = found["far_distinct_seconds"] / found["far_one_load_seconds"]
    full = fresh(workers=1, queue=2)
    waiting, slowest, refused = [], 0.0, 0
    for revision in revisions:
        start = time.perf_counter()
        try:
            waiting.append(full.request(revision))
        except PefxError as error:
            refused += error.retryable
        slowest = max(slowest, time.perf_counter() - start)
    for ticket in waiting:
        with ticket:
            pass
    found["refused"], found["slowest_answer_ms"] = refused, 1e3 * slowest
    return found
