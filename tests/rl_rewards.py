"""A reward that any text earns some of: tests of runs over a base that knows nothing."""

from collections.abc import Mapping
from typing import Any


def vowels(prompt: str, completion: str, fields: Mapping[str, Any]) -> float:
    """The share of characters that are vowels."""
    return sum(char in "aeiou" for char in completion.lower()) / max(len(completion), 1)


def width(prompt: str, completion: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """More for longer ones."""
    return {"reward": min(len(completion) / 64, 1.0), "long": float(len(completion) > 32)}


def troubled(prompt: str, completion: str, fields: Mapping[str, Any]) -> float:
    """Raises for some texts, gives what is no number for others."""
    kind = sum(map(ord, completion)) % 4
    if kind == 0:
        raise ValueError("it would not do")
    return float("nan") if kind == 1 else vowels(prompt, completion, fields)
