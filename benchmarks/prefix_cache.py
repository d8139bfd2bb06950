"""Time to the first token of prompts that begin alike, with and without the prefix cache.

`pefx bench prefix_cache`, or from the root `python -m benchmarks.prefix_cache --rounds 20`. On the shipped base, each
of some policies has a preamble of 200 tokens, which all its prompts begin with; 24 tokens of each prompt are its own.
Two engines take turns in one process: requests one at a time, then all policies at once.
"""

import random
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.population.people import BASE, SPEC
from benchmarks.served.engines import Line, commit_adapters, engine_of, loaded, name_of
from pefx.config import ServeConfig
from pefx.families.config_json import read_config
from pefx.mesh import use_cores
from pefx.serving.requests import Request


@dataclass(frozen=True)
class Options:
    """How much."""

    rounds: int = 10
    policies: int = 16
    preamble: int = 200
    own: int = 24
    seed: int = 0


class Prompts:
    """Prompts of policies: a preamble each, and words that were never there before."""

    def __init__(self, options: Options, vocab_size: int):
        self._source, self._vocab_size, self._options = random.Random(options.seed), vocab_size, options
        self._preambles = [self._words(options.preamble) for _ in range(options.policies)]
        self._made = 0

    def _words(self, count: int) -> tuple[int, ...]:
        return tuple(self._source.randrange(self._vocab_size) for _ in range(count))

    def round(self) -> list[Request]:
        """One request of each policy, for one greedy token."""
        made = []
        for index, preamble in enumerate(self._preambles):
            self._made += 1
            prompt = preamble + self._words(self._options.own)
            made.append(Request(str(self._made), prompt, name_of(index), max_tokens=1, temperature=0.0))
        return made


def first_tokens(line: Line, requests: list[Request], together: int) -> tuple[list[float], int]:
    """Milliseconds to each first token, and how many tokens of the prompts were cached."""
    done = line.answer(requests, together)
    return [1e3 * answered.waited for answered in done], sum(answered.cached_tokens for answered in done)


def main(options: Options) -> None:
    """Both engines, one round each, again and again; the first round compiles and fills the cache."""
    use_cores()
    found: dict[tuple[str, int], list[float]] = {}
    cached: dict[str, int] = {"with": 0, "without": 0}
    with ExitStack() as stack:
        catalog = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "catalog"
        commit_adapters(catalog, BASE, SPEC, range(options.policies))
        config = ServeConfig("prefix", str(BASE), str(catalog), slots=2 * options.policies, max_rank=SPEC.rank)
        parts = stack.enter_context(loaded(config))
        lines = {
            "with": stack.enter_context(engine_of(config, parts)),
            "without": stack.enter_context(engine_of(replace(config, prefix_cache=False), parts)),
        }
        prompts = Prompts(options, read_config(BASE).vocab_size)
        for turn in range(options.rounds + 1):
            for together in (1, options.policies):
                requests = prompts.round()
                for name in sorted(lines, reverse=turn % 2 == 1):
                    times, hits = first_tokens(lines[name], requests, together)
                    if turn:
                        found.setdefault((name, together), []).append(statistics.median(times))
                        cached[name] += hits
    if cached["without"] or not cached["with"]:
        raise RuntimeError(f"cached tokens of prompts, with and without a cache: {cached}")
    show(found, cached["with"] / (2 * options.rounds * options.policies), options)


def show(found: dict[tuple[str, int], list[float]], cached: float, options: Options) -> None:
    """A row for each way of asking: medians over rounds, and the median of each round's ratio."""
    title = (
        f"milliseconds to the first token, prompts of {options.preamble + options.own} tokens, {cached:.0f} of them "
        f"cached; medians of {options.rounds} rounds"
    )
    table = Table("at once", title=title, title_justify="left")
    for column in ("without", "with", "ratio"):
        table.add_column(column, justify="right")
    for together in sorted({at for _, at in found}):
        plain, quick = found["without", together], found["with", together]
        ratio = statistics.median(a / b for a, b in zip(plain, quick, strict=True))
        numbers = f"{statistics.median(plain):.1f}", f"{statistics.median(quick):.1f}", f"{ratio:.2f}"
        table.add_row(str(together), *numbers)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
