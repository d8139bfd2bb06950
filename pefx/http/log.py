"""Events as lines of JSON, for the error stream. They hold names and numbers, nothing of what is asked or answered."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("pefx.http")


def tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line; a field that is None or false is left out."""
    given = {name: value for name, value in fields.items() if value is not None and value is not False}
    row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | given
    LOG.log(level, "%s", json.dumps(row))


def to_stderr() -> None:
    """Lines go to the error stream from now on, as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
