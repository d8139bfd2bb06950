"""The server under more load than it can take: right answers, quick refusals, flat memory, fair turns, new adapters.

    python -m studies.serving_load [--seconds 600]

Starts `serve.py` over HTTP on the shipped base with 64 adapters and fewer slots. First what all questions must be
answered with, by `serve.py`'s batches; then its capacity; then arrivals at twice that over 500 open connections;
a tenant that asks now and then, alone and beside another's flood; and 100 adapters that are committed, prewarmed and
exposed while others are served. Exit status 1 where an answer is wrong or lost.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.population.people import BASE, SPEC
from benchmarks.served.engines import commit_adapters, name_of
from studies.http.load import Crowd, Memory, Tally, quiet
from studies.http.picture import Seen, draw
from studies.http.server import Server, base_name, serving
from studies.http.world import NEW, Question, make_config, questions, right_answers
from studies.programs.commands import ROOT, write_config

QUEUE = 256  # requests in flight beyond which the server refuses
EVERY = 0.5  # seconds between the quiet tenant's requests
COLD = ("pefx_host_loads_total", "pefx_host_misses_total", 'pefx_adapters_total{where="cold"}')


@dataclass(frozen=True)
class Options:
    """How much."""

    seconds: float = 600.0
    """Of the load at twice the capacity; other parts take a tenth each."""
    connections: int = 500
    policies: int = 64
    slots: int = 32
    sequences: int = 64
    questions: int = 256
    more: int = 100
    """Adapters that are added."""
    out: Path = ROOT / "runs" / "serving_load"
    pictures: Path = ROOT / "docs" / "studies"

    @property
    def part(self) -> float:
        return self.seconds / 10


@dataclass(frozen=True)
class Asked:
    """The questions of everybody, of the quiet tenant, of the one who floods, and to adapters that are yet to come."""

    all: list[Question]
    quiet: list[Question]
    flood: list[Question]
    new: list[Question]

    @classmethod
    def make(cls, options: Options) -> "Asked":
        everybody: list[int | None] = [None, *range(2, options.policies)]
        return cls(
            all=questions(everybody, options.questions, seed=1),
            quiet=questions([0], 16, seed=2, new=(8, 16)),
            flood=questions([1], 16, seed=3),
            new=questions(range(NEW, NEW + options.more), options.more, seed=4, new=(8, 16)),
        )


async def add_adapters(server: Server, catalog: Path, count: int, seconds: float) -> None:
    """Adapters come to the catalog one after another, and each is made ready by the server."""
    connection, begun = server.connection(), time.monotonic()
    for turn in range(count):
        await asyncio.sleep(max(0.0, begun + turn * seconds / count - time.monotonic()))
        await asyncio.to_thread(commit_adapters, catalog, BASE, SPEC, [NEW + turn])
        for action in ("register", "prewarm", "expose"):
            reply = await connection.post(f"/admin/{action}", {"model": f"{name_of(NEW + turn)}@1"})
            if reply.status != 200:
                raise RuntimeError(f"{action} {name_of(NEW + turn)}: {reply.body.decode()}")
    connection.close()


async def while_adapters_come(
    server: Server, crowd: Crowd, asked: Asked, rate: float, options: Options
) -> dict[str, Any]:
    """Half of the load that the server can take: before, while adapters are added, and after."""
    catalog, tallies = options.out / "catalog", []
    for turn in range(3):
        load = crowd.arrivals(asked.all, rate / 2, options.part)
        work = [add_adapters(server, catalog, options.more, 0.9 * options.part)] if turn == 1 else []
        tallies.append((await asyncio.gather(load, *work))[0])
    before = await server.metrics()
    first, connection = Tally(), server.connection()
    for question in asked.new:
        await crowd.ask(connection, question, first)
    connection.close()
    after = await server.metrics()
    return {"tallies": tallies, "first": first, "cold": sum(after.get(n, 0) - before.get(n, 0) for n in COLD)}


async def study(server: Server, right: dict[int, list[int]], asked: Asked, options: Options) -> Seen:
    """All parts, one after another."""
    console = Console(stderr=True)
    crowd = Crowd(server, await base_name(server), right, options.connections)
    await crowd.flood(asked.all, options.sequences, 10)  # compiles
    free = await crowd.flood(asked.all, 2 * options.sequences, max(options.part, 10))
    capacity = free.verdicts["right"] / free.seconds
    console.print(f"capacity {capacity:.1f} requests/s")
    alone = await quiet(server, crowd, asked.quiet, EVERY, options.part)
    console.print("a tenant beside everybody, and beside another's flood")
    usual, among = await asyncio.gather(
        crowd.arrivals(asked.all, 0.8 * capacity, options.part + 2),
        quiet(server, crowd, asked.quiet, EVERY, options.part),
    )
    # As many as fit: the server refuses by what is in flight, whoever asks.
    flood, beside = await asyncio.gather(
        crowd.flood(asked.flood, min(QUEUE - 8, options.connections), options.part + 2),
        quiet(server, crowd, asked.quiet, EVERY, options.part),
    )
    console.print("adapters come")
    coming = await while_adapters_come(server, crowd, asked, capacity, options)
    console.print(f"{options.seconds:.0f} s at twice the capacity")
    await crowd.open()
    busy = time.process_time()
    async with Memory(server) as memory:
        over = await crowd.arrivals(asked.all, 2 * capacity, options.seconds)
    client = (time.process_time() - busy) / over.seconds
    crowd.close()
    parts = {"capacity": free, "alone": alone, "usual": usual, "among": among, "flood": flood, "beside": beside}
    parts["overload"] = over
    parts |= dict(zip(("before", "adding", "after"), coming["tallies"])) | {"first": coming["first"]}
    return Seen(parts, memory.samples, capacity, client, coming["cold"], options.seconds)


def numbers(seen: Seen) -> list[tuple[str, float, str, bool]]:
    """What was measured, the bound beside it, and whether it holds."""
    parts = seen.parts

    def p(part: str, what: str, percent: float) -> float:
        values: Sequence[float] = getattr(parts[part], what)
        return float(np.percentile(values, percent)) if values else float("nan")

    wrong, lost = (sum(getattr(tally, name) for tally in parts.values()) for name in ("wrong", "lost"))
    refusal, slope = 1e3 * p("overload", "refusals", 99), seen.slope()
    adding = p("adding", "each", 95) / np.mean([p(name, "each", 95) for name in ("before", "after")])
    ratio = p("beside", "first", 99) / p("among", "first", 99)
    right = sum(tally.verdicts["right"] for tally in parts.values())
    return [
        ("answers that were right", right, "all", True),
        ("wrong", wrong, "0", wrong == 0),
        ("lost", lost, "0", lost == 0),
        ("capacity, requests/s", seen.capacity, "", True),
        ("refused of those at twice the capacity", parts["overload"].verdicts["refused"], "", True),
        ("refusals, p99 ms", refusal, "< 50", refusal < 50),
        ("memory at the end, MiB", seen.memory[-1][1] if seen.memory else float("nan"), "", True),
        ("memory under load, MiB a minute", slope, "about 0", slope < 1),
        ("more while the rest was answered, MiB", seen.rest() if seen.memory else float("nan"), "", True),
        ("the quiet tenant's first token, p99 ms", 1e3 * p("alone", "first", 99), "", True),
        ("the same beside everybody, at 0.8 of the capacity", 1e3 * p("among", "first", 99), "", True),
        ("the same beside another's flood", 1e3 * p("beside", "first", 99), "", True),
        ("that over an idle server's", p("beside", "first", 99) / p("alone", "first", 99), "", True),
        ("that over everybody's", ratio, "<= 2", bool(ratio <= 2)),
        ("that flood's own", 1e3 * p("flood", "first", 99), "", True),
        ("time per token p95 while adapters come, of before and after", float(adding), "<= 1.10", bool(adding <= 1.1)),
        ("reads for the first requests of those adapters", seen.cold, "0", seen.cold == 0),
        ("the client's own share of a core", seen.client, "", True),
    ]


def main(options: Options) -> int:
    """Runs the study; prints a table, writes results.json and the picture."""
    options.out.mkdir(parents=True, exist_ok=True)
    catalog = options.out / "catalog"
    if catalog.exists():
        sys.exit(f"{catalog} is there from another run; remove {options.out}, or name another --out")
    config = make_config(options.out, options.policies, options.slots, options.sequences)
    asked = Asked.make(options)
    right = right_answers(options.out, config, [*asked.all, *asked.quiet, *asked.flood])
    # Answers of adapters that are not there yet: from a catalog that has them already.
    right |= right_answers(*_later(config, options), asked.new)
    path = write_config(options.out / "server.py", config)
    with serving(path, options.out / "server.log", "--http.queue", str(QUEUE)) as server:
        seen = asyncio.run(study(server, right, asked, options))
    found = numbers(seen)
    table = Table("what", title=f"{options.seconds:.0f} s, {options.connections} connections", title_justify="left")
    for column in ("measured", "bound"):
        table.add_column(column, justify="right")
    for name, value, bound, holds in found:
        table.add_row(name, f"{value:,.2f}".removesuffix(".00"), bound + ("" if holds else " (missed)"))
    Console().print(table)
    result = {name: value for name, value, _, _ in found}
    result |= {"memory": seen.memory, "verdicts": {name: dict(tally.verdicts) for name, tally in seen.parts.items()}}
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    options.pictures.mkdir(parents=True, exist_ok=True)
    draw(seen, options.pictures / "serving-load.png")
    return 0 if all(holds for name, _, _, holds in found if name in ("wrong", "lost")) else 1


def _later(config: Any, options: Options) -> tuple[Path, Any]:
    """A folder and a config of a second catalog, with the adapters that are added later."""
    folder = options.out / "later"
    folder.mkdir()
    commit_adapters(folder / "catalog", BASE, SPEC, range(NEW, NEW + options.more))
    return folder, type(config)(**{**vars(config), "catalog": str(folder / "catalog")})


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
