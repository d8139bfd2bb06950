"""What pefx_worker.py does with traffic: `serve.py`'s engine, from a catalog of adapters to answers, in one process."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from traffic import Asked, Traffic, longest_first

from benchmarks.served.engines import commit_adapters, loaded, name_of
from pefx.config import AdapterSpec, ServeConfig
from pefx.families.config_json import read_config
from pefx.serving.requests import Request

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "experts.gate_proj", "experts.up_proj", "experts.down_proj")
SHARDS = 2  # at most: each has slots of its own
KEPT = ExitStack()  # the engine and its catalog live as long as the program


def requests_of(asked: list[Asked]) -> list[Request]:
    """The requests in pefx's form, greedy."""
    return [
        Request(str(i), tuple(one.prompt), name_of(one.adapter), max_tokens=one.new, temperature=0.0, ignore_eos=True)
        for i, one in enumerate(asked)
    ]


def serving(model_dir: Path, traffic: Traffic) -> Callable[[], float]:
    """Greedy answers to all requests. Every adapter stays in a slot once it was used.

    Way "continuous": all requests are queued, and enter as others leave. "static": `batch` at a time, in their order,
    and the next when all of them are over. "sorted": the same, with answers of about one length in a batch.
    """
    catalog = Path(KEPT.enter_context(tempfile.TemporaryDirectory())) / "catalog"
    spec = AdapterSpec(rank=traffic.rank, alpha=float(traffic.rank), targets=TARGETS)
    commit_adapters(catalog, model_dir, spec, range(traffic.adapters))
    config = ServeConfig(
        name="traffic",
        base=str(model_dir),
        catalog=str(catalog),
        slots=traffic.adapters * SHARDS,
        sequences=traffic.batch,
        max_rank=traffic.rank,
        targets=TARGETS,
    )
    line = KEPT.enter_context(KEPT.enter_context(loaded(config)).engine(config))
    vocabulary, turn = read_config(model_dir).vocab_size, 0

    def run() -> float:
        nonlocal turn
        asked = traffic.draw(vocabulary, turn)
        turn += 1
        requests = requests_of(longest_first(asked) if traffic.way == "sorted" else asked)
        start = time.perf_counter()
        done = line.answer(requests, 0 if traffic.way == "continuous" else traffic.batch)
        seconds = time.perf_counter() - start
        if sum(answered.tokens for answered in done) != traffic.tokens:
            raise RuntimeError("an answer ended early")
        return seconds

    return run
