"""Checks of fields of a config's part: which of them break a rule, and in what words."""

import math
from collections.abc import Callable, Iterator
from typing import Any

Broken = Iterator[tuple[str, str]]  # (dotted field, what is wrong and what would be right)


def positive(part: Any, prefix: str, *names: str) -> Broken:
    yield from holds(part, prefix, lambda x: x > 0, "must be above 0", *names)


def not_negative(part: Any, prefix: str, *names: str) -> Broken:
    yield from holds(part, prefix, lambda x: x >= 0, "must not be negative", *names)


def holds(part: Any, prefix: str, rule: Callable[[Any], bool], words: str, *names: str) -> Broken:
    """Yields the fields of `part` that are not finite or break `rule`."""
    for name in names:
        value = getattr(part, name)
        if not (math.isfinite(value) and rule(value)):
            yield prefix + name, f"{words}, got {value}"


def texts(part: Any, prefix: str, *names: str) -> Broken:
    for name in names:
        if not getattr(part, name):
            yield prefix + name, "must not be empty"
