"""What goes into an answer file: one JSON object per request, the same bytes for the same numbers."""

import json
from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.serving.requests import Request
from pefx.serving.sequence import Sequence


def number(value: float) -> float:
    """The float whose shortest decimal form reads back as the same float32. `value` is a float32's value."""
    single = np.float32(value)
    short = float(str(single))
    # A decimal is read to float64 first and rounded again: where that would miss, all digits are written.
    return short if np.float32(short) == single else float(single)


def numbers(values: Ordered[float | None]) -> list[float | None]:
    return [None if value is None else number(value) for value in values]


def answer(request: Request, choices: Ordered[Sequence]) -> dict[str, Any]:
    """The answer of `choices`, which are over, best first. Numbers the request did not ask for are null."""
    first = choices[0]
    failed = next((choice.error for choice in choices if choice.error is not None), None)
    if failed is not None:
        return refusal(request.id, failed)
    revision, told = first.asked, [_choice(request, sequence) for sequence in choices[: request.n]]
    row = {
        "id": request.id,
        "policy": None if revision is None else revision.policy,
        "revision": None if revision is None else revision.number,
        "text": told[0]["text"],
        "tokens": told[0]["tokens"],
        "logprobs": told[0]["logprobs"],
        "prompt_logprobs": numbers(first.prompt_logprobs) if first.score_prompt else None,
        "finish_reason": told[0]["finish_reason"],
    }
    if request.top_logprobs:
        row["top_logprobs"] = told[0]["top_logprobs"]
    return row | {"choices": told} if request.n > 1 else row


def _choice(request: Request, sequence: Sequence) -> dict[str, Any]:
    generation = sequence.generation
    told = {
        "text": generation.text,
        "tokens": generation.tokens,
        "logprobs": numbers(generation.logprobs) if request.logprobs else None,
        "finish_reason": generation.finish_reason,
    }
    if request.top_logprobs:
        told["top_logprobs"] = [likeliest(top, request.top_logprobs) for top in generation.top]
    return told


def likeliest(top: Ordered[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """The first `count` of a place's likeliest tokens, as they are told."""
    return [(token, number(logprob)) for token, logprob in top[:count]]


def refusal(id: str | None, error: PefxError) -> dict[str, Any]:
    """The answer to a request that cannot be served."""
    return {"id": id, "error": {"type": error.kind, "message": str(error)}}


def to_json(row: Any) -> bytes:
    """One line without its end. Text is UTF-8 as it is; not-a-number is refused, JSON has none."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
