"""What pefx_worker.py does with requests: `serve.py`'s engine, from a catalog to answers, in one process."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from case import Case
from traffic import Asked, Traffic, longest_first

from benchmarks.served.engines import Line, commit_adapters, engine_of, loaded, name_of
from pefx.config import AdapterSpec, ServeConfig
from pefx.families.config_json import read_config
from pefx.serving.local_queue import LocalQueue
from pefx.serving.requests import Request

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "experts.gate_proj", "experts.up_proj", "experts.down_proj")
SHARDS = 2  # at most: each has slots of its own
STEP_TOKENS = 512
KEPT = ExitStack()  # an engine and its catalog live as long as the program


def line_of(model_dir: Path, case: Case | Traffic, sequences: int, slots: int) -> Line:
    """An engine over as many adapters as the case has; all of them find a slot on each shard."""
    catalog = None
    if case.adapters:
        catalog = str(Path(KEPT.enter_context(tempfile.TemporaryDirectory())) / "catalog")
        spec = AdapterSpec(rank=case.rank, alpha=float(case.rank), targets=TARGETS)
        commit_adapters(Path(catalog), model_dir, spec, range(case.adapters))
    config = ServeConfig(
        name="bench",
        base=str(model_dir),
        catalog=catalog,
        slots=max(slots, case.adapters * SHARDS),
        sequences=sequences,
        step_tokens=STEP_TOKENS,
        max_rank=case.rank,
        targets=TARGETS,
    )
    return KEPT.enter_context(engine_of(config, KEPT.enter_context(loaded(config)), LocalQueue()))


def requests_of(asked: Sequence[Asked], adapters: int) -> list[Request]:
    """The requests in pefx's form, greedy; without adapters, to the bare base."""
    made = []
    for index, (prompt, new, adapter) in enumerate(asked):
        policy = name_of(adapter) if adapters else None
        made.append(Request(str(index), tuple(prompt), policy, max_tokens=new, temperature=0.0, ignore_eos=True))
    return made


def timed(line: Line, requests: list[Request], together: int = 0) -> float:
    """Seconds until all are answered."""
    start = time.perf_counter()
    done = line.answer(requests, together)
    seconds = time.perf_counter() - start
    if sum(answered.tokens for answered in done) != sum(request.max_tokens for request in requests):
        raise RuntimeError("an answer ended early")
    return seconds


def generation(model_dir: Path, case: Case) -> Callable[[], float]:
    """Greedy continuation of all prompts from one running batch, sequence i with adapter i % adapters."""
    line = line_of(model_dir, case, case.sequences, case.slots)
    vocabulary, turn = read_config(model_dir).vocab_size, 0

    def run() -> float:
        nonlocal turn
        # Other words each time: the prefix cache must know none.
        words = replace(case, seed=case.seed + turn).draw(vocabulary)
        turn += 1
        asked = [Asked(row, case.new, i % max(case.adapters, 1)) for i, row in enumerate(words)]
        return timed(line, requests_of(asked, case.adapters))

    return run


def as_long_as_the_longest(requests: list[Request], batch: int) -> list[Request]:
    """Every request asks for as many tokens as the longest of its batch."""
    made = []
    for start in range(0, len(requests), batch):
        together = requests[start : start + batch]
        most = max(request.max_tokens for request in together)
        made += [replace(request, max_tokens=most) for request in together]
    return made


def serving(model_dir: Path, traffic: Traffic) -> Callable[[], float]:
    """Greedy answers to all requests.

    Way "continuous": all requests are queued, and enter as others leave. "static": `batch` at a time, in their order,
    and the next when all of them are over. "sorted": the same, with answers of about one length in a batch. "padded":
    as "static", but rows that are over go on until the last of their batch is, as where a batch keeps its shape.
    """
    line = line_of(model_dir, traffic, traffic.batch, slots=0)
    vocabulary, turn = read_config(model_dir).vocab_size, 0

    def run() -> float:
        nonlocal turn
        asked = traffic.draw(vocabulary, turn)
        turn += 1
        requests = requests_of(longest_first(asked) if traffic.way == "sorted" else asked, traffic.adapters)
        if traffic.way == "padded":
            requests = as_long_as_the_longest(requests, traffic.batch)
        return timed(line, requests, 0 if traffic.way == "continuous" else traffic.batch)

    return run
