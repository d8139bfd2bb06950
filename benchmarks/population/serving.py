"""Serving users of a catalog: how long warm steps take, and what the host adds to a token.

`python -m benchmarks.population.serving LARGE USERS SMALL USERS` serves the same number of requests from both, taking
turns, and prints one line of JSON. A step is warm where no adapter was loaded for it.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.population.people import BASE, name_of
from pefx.config import ServeConfig
from pefx.data.tokenizer import Tokenizer
from pefx.loading import load_base
from pefx.mesh import on_mesh, placement, resolved
from pefx.serving.engine import Engine
from pefx.serving.policies import Policies
from pefx.serving.requests import Request
from pefx.serving.run import bank_room, build_engine
from pefx.store.catalog import Catalog

REQUESTS, ROUNDS = 2000, 3
PROMPT, ANSWER = 24, 8  # tokens
ZIPF = 1.1


@dataclass
class Timed:
    """A device that is timed: `run` by step, and all that fills slots."""

    device: Any
    steps: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @property
    def vocab_size(self) -> int:
        return self.device.vocab_size

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
    """Serve all of `todo`; times in milliseconds."""
    timed.steps.clear()
    timed.loads.clear()
    warm_steps, warm_host, tokens, at = [], 0.0, 0, 0
    warm_tokens = 0
    begun = time.perf_counter()
    while at < len(todo) or not engine.idle:
        start, loaded, ran = time.perf_counter(), len(timed.loads), len(timed.steps)
        while at < len(todo) and engine.room:
            engine.submit(at, todo[at], policies.resolve(str(todo[at].policy), None))
            at += 1
        answered = engine.step()
        took = time.perf_counter() - start
        done = sum(row.tokens for row in answered)
        tokens += done
        if len(timed.loads) == loaded and len(timed.steps) > ran:
            warm_steps.append(timed.steps[-1])
            warm_host += took - timed.steps[-1]
            warm_tokens += done
    wall = time.perf_counter() - begun
    host = wall - sum(timed.steps) - sum(timed.loads)
    return {
        "warm_step_ms": 1e3 * float(np.median(warm_steps)),
        "warm_steps": len(warm_steps),
        "host_ms_per_token": 1e3 * host / tokens,
        "warm_host_ms_per_step": 1e3 * warm_host / max(len(warm_steps), 1),
        "loads": len(timed.loads),
        "tokens_per_second": tokens / wall,
    }


def main(words: list[str]) -> None:
    """Serve both catalogs in turn."""
    places = {words[0]: int(words[1]), words[2]: int(words[3])}
    tokenizer = Tokenizer.load(BASE)
    found: dict[str, list[dict[str, float]]] = {place: [] for place in places}
    configs = {
        place: ServeConfig("population", str(BASE), catalog=place, slots=64, sequences=64, max_rank=1)
        for place in places
    }
    mesh = resolved(next(iter(configs.values())).mesh, 64)
    with on_mesh(mesh):
        base, digest = load_base(BASE, "float32", placement())
        for round in range(ROUNDS + 1):  # the first compiles
            for place, config in configs.items():
                policies = Policies(Catalog.open(place, read_only=True), digest, bank_room(config))
                engine = build_engine(config, base, tokenizer, policies, mesh.rows)
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
