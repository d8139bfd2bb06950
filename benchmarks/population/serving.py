"""Serving users of a catalog: how long warm steps take, and what the host adds to a token.

`python -m benchmarks.population.serving LARGE USERS SMALL USERS` serves the same number of requests from both, taking
turns, and prints one line of JSON. A step is warm where it decodes, and no adapter was loaded for it.
"""

import json
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.population.people import BASE, name_of
from pefx.config import ServeConfig
from pefx.mesh import on_mesh
from pefx.serving.assembly import bank_room, build_engine, read_parts
from pefx.serving.engine import Engine, Way
from pefx.serving.local_queue import LocalQueue
from pefx.serving.policies import Policies
from pefx.serving.requests import Request
from pefx.store.catalog import Catalog

REQUESTS, ROUNDS = 2000, 3
PROMPT, ANSWER = 24, 32  # tokens
ZIPF = 1.1
AHEAD = 128  # requests that wait


@dataclass
class Timed:
    """A device that is timed: `run` by step, and all that fills slots."""

    device: Any
    steps: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    drawn: int = 0  # tokens of the last step
    decoding: bool = False  # whether it took in no prompt

    @property
    def vocab_size(self) -> int:
        return self.device.vocab_size

    @property
    def seconds(self) -> float:
        return self.device.seconds

    @property
    def rows(self) -> int:
        return self.device.rows

    @property
    def context(self) -> int:
        return self.device.context

    def load(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self.device.load(*arguments)
        self.loads.append(time.perf_counter() - start)

    def run(self, plan: Any) -> Any:
        start = time.perf_counter()
        done = self.device.run(plan)
        self.steps.append(time.perf_counter() - start)
        self.drawn, self.decoding = len(plan.wanted), all(len(span.tokens) == 1 for span in plan.spans)
        return done


def requests(users: int, seed: int) -> list[Request]:
    """Requests of users who are drawn by Zipf's law."""
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    while len(drawn) < REQUESTS:
        drawn += [int(x) for x in rng.zipf(ZIPF, REQUESTS) if x <= users]
    # The rank of a user is no neighbourhood of keys.
    people = [(user * 7919) % users for user in drawn[:REQUESTS]]
    prompts = rng.integers(5, 4000, (REQUESTS, PROMPT)).tolist()
    return [
        Request(str(i), tuple(prompt), name_of(user), max_tokens=ANSWER, temperature=0.0)
        for i, (user, prompt) in enumerate(zip(people, prompts, strict=True))
    ]


def serve(engine: Engine, timed: Timed, policies: Policies, todo: list[Request]) -> dict[str, float]:
    """Serve all of `todo`; times in milliseconds. Looking policies up is timed apart, once a request."""
    timed.steps.clear()
    timed.loads.clear()
    steps, host, drawn, lookups, at = [], 0.0, 0, [], 0
    begun = time.perf_counter()
    while at < len(todo) or not engine.idle:
        while at < len(todo) and engine.waiting < AHEAD:
            start = time.perf_counter()
            revision = policies.resolve(str(todo[at].policy), None)
            lookups.append(time.perf_counter() - start)
            engine.submit(at, todo[at], revision)
            at += 1
        start, loaded, ran = time.perf_counter(), len(timed.loads), len(timed.steps)
        engine.step()
        took = time.perf_counter() - start
        if len(timed.loads) == loaded and len(timed.steps) > ran and timed.decoding:
            steps.append(timed.steps[-1])
            host += took - timed.steps[-1]
            drawn += timed.drawn
    return {
        "warm_step_ms": 1e3 * float(np.median(steps)),
        "warm_steps": len(steps),
        "warm_host_ms_per_token": 1e3 * host / drawn,
        "lookup_ms": 1e3 * float(np.median(lookups)),
        "loads": len(timed.loads),
        "requests_per_second": len(todo) / (time.perf_counter() - begun),
    }


def main(words: list[str]) -> None:
    """Serve both catalogs in turn."""
    places = {words[0]: int(words[1]), words[2]: int(words[3])}
    found: dict[str, list[dict[str, float]]] = {place: [] for place in places}
    configs = {
        place: ServeConfig("population", str(BASE), catalog=place, slots=64, sequences=64, max_rank=1)
        for place in places
    }
    catalogs = {place: Catalog.open(place, read_only=True) for place in places}
    parts = read_parts(next(iter(configs.values())), None)
    with on_mesh(parts.mesh):
        for round in range(ROUNDS + 1):  # the first compiles
            for place, config in configs.items():
                policies = Policies(catalogs[place], parts.digest, bank_room(config))
                engine, _ = build_engine(config, replace(parts, policies=policies), LocalQueue(), Way())
                timed = Timed(engine._device)
                engine._device = timed  # type: ignore[assignment]
                measured = serve(engine, timed, policies, requests(places[place], round))
                if round:
                    found[place].append(measured)
    medians = {
        place: {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}
        for place, rounds in found.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main(sys.argv[1:])
