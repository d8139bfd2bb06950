"""What the commands of `pefx catalog` share: types of arguments, a line of progress, the tale of a bulk command."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import arg

from pefx.progress import Display, clock
from pefx.store.encoding import to_plain

CatalogPath = Annotated[str, arg(metavar="PATH"), tyro.conf.Positional]
Name = Annotated[str, arg(metavar="POLICY"), tyro.conf.Positional]
Reference = Annotated[str, arg(metavar="POLICY[@REVISION]"), tyro.conf.Positional]
File = Annotated[Path, arg(metavar="FILE"), tyro.conf.Positional]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@contextmanager
def progress(name: str, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A line about how many are done, on the error stream: the output is the command's result."""
    console = Console(stderr=True)
    start = datetime.now(UTC)
    done = 0
    with Display(name, total or 0, 0, console) as display:

        def step(count: int) -> None:
            nonlocal done
            done += count
            seconds = (datetime.now(UTC) - start).total_seconds()
            rate = done / max(seconds, 1e-6)
            left = f", {clock((total - done) / max(rate, 1e-6))} left" if total else ""
            of = f"/{total:,}" if total else ""
            display.show(done, f"{done:,}{of} {what}, {rate:,.0f}/s{left}")

        yield step


def say(as_json: bool, found: Any, text: str) -> None:
    """What a command did: the record or figures that came of it as JSON, or `text`."""
    print(json.dumps(to_plain(found), indent=2) if as_json else text)


def tell(done: list[str], refused: list[str], what: str) -> int:
    """Says what a bulk command did; returns its exit code."""
    for key in done[:20]:
        print(f"{what} {key}")
    if len(done) > 20:
        print(f"... {len(done):,} in all")
    for told in refused:
        print(f"error: refused: {' '.join(told.split())}", file=sys.stderr)
    return 2 if refused else 0
