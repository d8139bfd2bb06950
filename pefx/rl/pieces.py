"""Micro-batches of rewarded answers: what a session has yet to learn from. It moves with the session, as plain JSON."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np

from pefx.rl.counters import Scored
from pefx.training.planner import Lesson, Terms


@dataclass(frozen=True, eq=False)
class Piece:
    """One micro-batch: lessons (of active row -1) and each one's rollout as it was before any update, what their sums
    are divided by, the position of the session after it, and what there is to say of the drawing.
    """

    lessons: tuple[Lesson, ...]
    seen: tuple[Scored, ...]
    denominator: float
    position: int
    facts: dict[str, float]


def to_json(pieces: Sequence[Piece]) -> str:
    """All of them as text; `from_json` gives back the same bits."""
    return base64.b64encode(msgspec.msgpack.encode([_plain(piece) for piece in pieces])).decode()


def from_json(text: str) -> list[Piece]:
    """What `to_json` gave."""
    return [_rebuilt(Piece, row) for row in msgspec.msgpack.decode(base64.b64decode(text))]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "bytes": value.tobytes()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Piece | Scored | Lesson | Terms):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


PARTS: dict[tuple[type, str], type] = {
    (Piece, "lessons"): Lesson,
    (Piece, "seen"): Scored,
    (Lesson, "terms"): Terms,
}


def _rebuilt(kind: type, row: dict[str, Any]) -> Any:
    return kind(**{name: _value(PARTS.get((kind, name)), value) for name, value in row.items()})


def _value(kind: type | None, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(kind, item) for item in value)
    if isinstance(value, dict) and "bytes" in value:
        return np.frombuffer(value["bytes"], np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return value if kind is None or value is None else _rebuilt(kind, value)
