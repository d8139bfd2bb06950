"""A reward that any text earns some of: tests of runs over a base that knows nothing."""

from collections.abc import Mapping
from typing import Any


def vowels(prompt: str, completion: str, fields: Mapping[str, Any]) -> float:
    """The share of characters that are vowels."""
    return sum(char in "aeiou" for char in completion.lower()) / max(len(completion), 1)


def width(prompt: str, completion: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """More for longer ones."""
    return {"reward": min(len(completion) / 64, 1.0), "long": float(len(completion) > 32)}
