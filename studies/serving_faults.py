"""Faults around a server that serves on: clients that go or do not read, malformed bodies, a catalog away, and rot.

    python -m studies.serving_faults [--bodies 10000] [--away 30]

After each fault, reference questions to the base and to policies are asked again: they must be answered with the same
tokens as before. Exit status 1 where one is not, or where a fault was not met as it must be.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from studies.http import faults
from studies.http.server import Server, base_name, serving
from studies.http.world import NEW, Question, make_config, questions
from studies.programs.commands import ROOT, write_config

POLICIES, KNOWN = 24, 16  # the others are not asked before the catalog is away


@dataclass(frozen=True)
class Options:
    """How much."""

    bodies: int = 10_000
    away: float = 30.0
    """Seconds that the catalog is not there."""
    slow: float = 30.0
    """Seconds that a client does not read."""
    gone: int = 50
    """Clients that go."""
    seed: int = 0
    out: Path = ROOT / "runs" / "serving_faults"


class Reference:
    """Questions, and the tokens that they were answered with at first."""

    def __init__(self, server: Server, base: str):
        self.server, self.base = server, base
        self.asked = questions([None, *range(KNOWN)], KNOWN + 8, seed=5)
        self._tokens: dict[int, list[int]] = {}

    def bodies(self) -> list[dict[str, Any]]:
        return [question.body(self.base) for question in self.asked]

    async def check(self) -> None:
        """Ask all at once. Raises RuntimeError where an answer is another than the first one was."""

        async def one(question: Question) -> None:
            told = await faults.one_answer(self.server, question.body(self.base))
            if told.status != 200 or told.error is not None:
                raise RuntimeError(f"question {question.number}: {told.status} {told.error}")
            if told.tokens != self._tokens.setdefault(question.number, told.tokens):
                raise RuntimeError(f"question {question.number} was answered with other tokens than before")

        await asyncio.gather(*map(one, self.asked))


async def study(server: Server, catalog: Path, options: Options) -> dict[str, Any]:
    """One fault after another; what each showed."""
    base = await base_name(server)
    reference = Reference(server, base)
    await reference.check()
    await reference.check()
    bodies = reference.bodies()
    unknown = questions([KNOWN], 1, seed=6)[0].body(base)
    many = [bodies[turn % len(bodies)] for turn in range(options.gone)]
    parts: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "clients gone": lambda: faults.clients_gone(server, many),
        "slow client": lambda: faults.slow_client(server, bodies[0], options.slow),
        "fuzzed bodies": lambda: faults.fuzzed(server, bodies[1], options.bodies, options.seed),
        "catalog away": lambda: faults.catalog_gone(server, catalog, reference.check, unknown, options.away),
        "corrupt revision": lambda: faults.corrupt_revision(server, catalog, NEW, reference.asked[0], base),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        begun = time.monotonic()
        try:
            found[name] = await part()
            await reference.check()
        except (RuntimeError, OSError, TimeoutError) as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        found[name]["seconds"] = round(time.monotonic() - begun, 1)
        Console(stderr=True).print(f"{name}: {found[name]}")
        if not server.alive:
            raise RuntimeError(f"the server ended: {server.log.read_text()[-2000:]}")
    return found


def main(options: Options) -> int:
    """Runs the study; prints and keeps what was found."""
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / "catalog").exists():
        sys.exit(f"{options.out / 'catalog'} is there from another run; remove it, or name another --out")
    config = make_config(options.out, POLICIES, slots=8, sequences=32)
    path = write_config(options.out / "server.py", config)
    with serving(path, options.out / "server.log") as server:
        found = asyncio.run(study(server, options.out / "catalog", options))
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 1 if any("failed" in part for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
