"""What programs that are started as modules have in common: a typed command line, and errors for people."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro

from pefx.errors import PefxError


def run(main: Callable[..., Any]) -> NoReturn:
    """Calls `main` with what the command line says, and exits: 0, or 2 with one line on stderr for a PefxError."""
    try:
        tyro.cli(main)
    except PefxError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)
