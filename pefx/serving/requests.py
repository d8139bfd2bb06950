"""One line of a request file to one `Request`, strictly: what is not understood is refused by name, never guessed."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pefx.errors import PefxError
from pefx.store.names import is_alias

MAX_TEMPERATURE = 100.0
MAX_SEED = 2**32 - 1


class RequestError(PefxError):
    """One bad request. `id` is its id where it has a usable one; `kind` names the sort of error in its answer."""

    kind = "invalid_request"

    def __init__(self, message: str, kind: str | None = None, id: str | None = None):
        super().__init__(message, kind)
        self.id = id


@dataclass(frozen=True)
class Request:
    """What one request asks for.

    `prompt` is text or token ids. `policy` None is the bare base; `revision` is a number or an alias,
    None the policy's latest.
    `temperature` 0 is greedy, `top_k` 0 is off, `seed` None is derived from the id.
    """

    id: str
    prompt: str | tuple[int, ...]
    policy: str | None = None
    revision: int | str | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    prompt_logprobs: bool = False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    """Whether `value` is a string that has a UTF-8 form (JSON can spell half of a surrogate pair)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_name(value: Any) -> bool:
    return _is_text(value) and value != ""


def _between(low: int, high: int | float) -> Callable[[Any], bool]:
    return lambda value: _is_int(value) and low <= value <= high


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and -1e9 < value < 1e9


def _is_prompt(value: Any) -> bool:
    return _is_name(value) or (isinstance(value, list) and value != [] and all(_is_int(token) for token in value))


# Each field: what it must be, in words, and the check. Ranges that depend on the base are checked by the engine.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a non-empty string", _is_name),
    "policy": ("a policy name, or null for the bare base", lambda v: v is None or _is_name(v)),
    "revision": (
        "an integer >= 1, an alias, or null for the latest",
        lambda v: v is None or _between(1, math.inf)(v) or is_alias(v),
    ),
    "prompt": ("a non-empty string or a non-empty list of token ids", _is_prompt),
    "max_tokens": ("an integer >= 1 (0 only with prompt_logprobs)", _between(0, math.inf)),
    "temperature": (
        f"a number from 0 (greedy) to {MAX_TEMPERATURE:g}",
        lambda v: _is_number(v) and 0 <= v <= MAX_TEMPERATURE,
    ),
    "top_p": ("a number above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1),
    "top_k": ("an integer >= 0 (0 is off)", _between(0, math.inf)),
    "seed": (f"an integer from 0 to {MAX_SEED}, or null", lambda v: v is None or _between(0, MAX_SEED)(v)),
    "stop": ("a list of non-empty strings", lambda v: isinstance(v, list) and all(_is_name(s) for s in v)),
    "logprobs": ("true or false", lambda v: isinstance(v, bool)),
    "prompt_logprobs": ("true or false", lambda v: isinstance(v, bool)),
}
REQUIRED = ("id", "prompt")


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        raise ValueError(f"field {next(k for k, _ in pairs if k in seen or seen.add(k))!r} is given twice")
    return row


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _load(line: bytes, where: str) -> dict[str, Any]:
    """The line's JSON object. Raises RequestError without an id: a line that does not parse has none."""
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: not UTF-8 text (byte {error.start})", "invalid_json") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: broken JSON at column {error.colno}: {error.msg}", "invalid_json") from None
    except (ValueError, RecursionError) as error:  # a field twice, NaN, a number or a nesting beyond all bounds
        raise RequestError(f"{where}: broken JSON: {error}", "invalid_json") from None
    if not isinstance(row, dict):
        raise RequestError(f"{where}: a request is a JSON object, got {_show(row)}", "invalid_json")
    return row


def parse_line(line: bytes, where: str) -> Request:
    """The request on one line; `where` ("in.jsonl line 7") begins every message.

    Raises RequestError naming line and field. Duplicate ids and what depends on the base are others' to check.
    """
    row = _load(line, where)
    id = row["id"] if _is_name(row.get("id")) else None
    for name in REQUIRED:
        if name not in row:
            raise RequestError(f"{where}, field '{name}': missing, must be {FIELDS[name][0]}", id=id)
    for name, value in row.items():
        if name not in FIELDS:
            raise RequestError(f"{where}: unknown field {_show(name)}; known are {', '.join(FIELDS)}", id=id)
        wanted, valid = FIELDS[name]
        if not valid(value):
            raise RequestError(f"{where}, field '{name}': must be {wanted}, got {_show(value)}", id=id)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    values |= {name: float(values[name]) for name in ("temperature", "top_p") if name in values}  # JSON's 0 or 1
    request = Request(**values)
    if request.max_tokens == 0 and not request.prompt_logprobs:
        raise RequestError(f"{where}, field 'max_tokens': must be {FIELDS['max_tokens'][0]}, got 0", id=id)
    if request.revision is not None and request.policy is None:
        raise RequestError(f"{where}, field 'revision': the bare base has no revisions; name a policy", id=id)
    return request


def seed_of(request: Request, salt: int) -> int:
    """The request's seed, or one that follows from its id and `salt` (the run's seed) alone. In [0, 2^32)."""
    if request.seed is not None:
        return request.seed
    digest = hashlib.sha256(json.dumps([salt, request.id]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def prompt_tokens(request: Request, encode: Callable[[str], list[int]], vocab_size: int, context: int) -> list[int]:
    """The prompt as token ids. Raises RequestError where it is empty, out of the vocabulary or too long.

    With `max_tokens` >= 1 it must leave room for one token in `context`.
    """
    given = request.prompt
    tokens = encode(given) if isinstance(given, str) else list(given)
    here = "field 'prompt'"
    for index, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            message = f"{here}: token id {token} at index {index} is out of range, must be 0 to {vocab_size - 1}"
            raise RequestError(message, "token_out_of_range", request.id)
    room = context - min(request.max_tokens, 1)
    if not tokens:
        raise RequestError(f"{here}: has no tokens", id=request.id)
    if len(tokens) > room:
        message = f"{here}: has {len(tokens)} tokens, at most {room} fit the base's context of {context}"
        raise RequestError(message, "prompt_too_long", request.id)
    return tokens
