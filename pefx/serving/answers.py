"""What goes into an answer file: one JSON object per request, the same bytes for the same numbers."""

import json
from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.serving.scheduler import Sequence


def number(value: float) -> float:
    """The float whose shortest decimal form reads back as the same float32. `value` is a float32's value."""
    single = np.float32(value)
    short = float(str(single))
    # A decimal is read to float64 first and rounded again: where that would miss, all digits are written.
    return short if np.float32(short) == single else float(single)


def numbers(values: Ordered[float | None]) -> list[float | None]:
    return [None if value is None else number(value) for value in values]


def answer(id: str, sequence: Sequence, logprobs: bool) -> dict[str, Any]:
    """The answer of a sequence that is over. Numbers the request did not ask for are null."""
    if sequence.error is not None:
        return refusal(id, sequence.error)
    generation, revision = sequence.generation, sequence.revision
    return {
        "id": id,
        "policy": None if revision is None else revision.policy,
        "revision": None if revision is None else revision.number,
        "text": generation.text,
        "tokens": generation.tokens,
        "logprobs": numbers(generation.logprobs) if logprobs else None,
        "prompt_logprobs": numbers(sequence.prompt_logprobs) if sequence.score_prompt else None,
        "finish_reason": generation.finish_reason,
    }


def refusal(id: str | None, error: PefxError) -> dict[str, Any]:
    """The answer to a request that cannot be served."""
    return {"id": id, "error": {"type": error.kind, "message": str(error)}}


def to_json(row: Any) -> bytes:
    """One line without its end. Text is UTF-8 as it is; not-a-number is refused, JSON has none."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
