"""One line of a request file to one `Request`, strictly: what is not understood is refused by name, never guessed."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from pefx.errors import PefxError
from pefx.store.names import is_alias

MAX_TEMPERATURE = 100.0
MAX_SEED = 2**32 - 1
MAX_CHOICES = 128
MAX_TOP = 20
MAX_BIAS = 100.0
MAX_PRIORITY = 100


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
    `temperature` 0 is greedy; `top_k` 0, `min_p` 0, `top_p` 1 and penalties of 0 (`repetition_penalty`: 1) are off.
    `seed` None is derived from the id. `n` answers are given, the likeliest (mean log-probability of a token) of
    `best_of`. `regex` or `json_schema` (as JSON text) is what an answer must match. Higher `priority` comes first.
    Of an adapter with memories, `writes` says which tokens are written; `remember` names the policy as whose newest
    revision the memory is kept when the answer is there, for later requests to begin with.
    `routes`, which no file or client asks for, has the experts of every token recorded.
    """

    id: str
    prompt: str | tuple[int, ...]
    policy: str | None = None
    revision: int | str | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    regex: str | None = None
    json_schema: str | None = None
    priority: int = 0
    writes: Literal["prompt", "all", "none"] = "prompt"
    remember: str | None = None
    routes: bool = False

    @property
    def constrained(self) -> bool:
        """Whether what may be drawn depends on what was."""
        return self.regex is not None or self.json_schema is not None

    @property
    def choices(self) -> int:
        """Answers that are generated."""
        return max(self.n, self.best_of or 1)


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


def _from(low: int | float, high: int | float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and low <= value <= high


def _list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(valid, value))


def _or_null(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


def _is_bias(value: Any) -> bool:
    low_to_high = _from(-MAX_BIAS, MAX_BIAS)
    return isinstance(value, dict) and all(k.isascii() and k.isdigit() and low_to_high(v) for k, v in value.items())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


# Each field: what it must be, in words, and the check. Ranges that depend on the base are checked by the engine.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a non-empty string", _is_name),
    "policy": ("a policy name, or null for the bare base", _or_null(_is_name)),
    "revision": (
        "an integer >= 1, an alias, or null for the latest",
        lambda v: v is None or _between(1, math.inf)(v) or is_alias(v),
    ),
    "prompt": ("a non-empty string or a non-empty list of token ids", _is_prompt),
    "max_tokens": ("an integer >= 1 (0 only with prompt_logprobs)", _between(0, math.inf)),
    "temperature": (f"a number from 0 (greedy) to {MAX_TEMPERATURE:g}", _from(0, MAX_TEMPERATURE)),
    "top_p": ("a number above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1),
    "top_k": ("an integer >= 0 (0 is off)", _between(0, math.inf)),
    "min_p": ("a number from 0 (off) to 1", _from(0, 1)),
    "repetition_penalty": ("a number above 0 and at most 10 (1 is off)", lambda v: _is_number(v) and 0 < v <= 10),
    "presence_penalty": ("a number from -2 to 2 (0 is off)", _from(-2, 2)),
    "frequency_penalty": ("a number from -2 to 2 (0 is off)", _from(-2, 2)),
    "logit_bias": (f"an object of token ids with a number from -{MAX_BIAS:g} to {MAX_BIAS:g} each", _is_bias),
    "seed": (f"an integer from 0 to {MAX_SEED}, or null", _or_null(_between(0, MAX_SEED))),
    "n": (f"an integer from 1 to {MAX_CHOICES}", _between(1, MAX_CHOICES)),
    "best_of": (f"an integer from 1 to {MAX_CHOICES}, at least n, or null", _or_null(_between(1, MAX_CHOICES))),
    "stop": ("a list of non-empty strings", _list_of(_is_name)),
    "stop_token_ids": ("a list of token ids", _list_of(_between(0, MAX_SEED))),
    "ignore_eos": ("true or false", _is_bool),
    "logprobs": ("true or false", _is_bool),
    "top_logprobs": (f"an integer from 0 to {MAX_TOP}", _between(0, MAX_TOP)),
    "prompt_logprobs": ("true or false", _is_bool),
    "regex": ("a regular expression, or null", _or_null(_is_name)),
    "json_schema": ("a JSON schema (an object), or null", _or_null(lambda v: isinstance(v, dict))),
    "writes": ("prompt, all or none", lambda v: v in ("prompt", "all", "none")),
    "remember": ("a policy name, or null", _or_null(_is_name)),
    "priority": (f"an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}", _between(-MAX_PRIORITY, MAX_PRIORITY)),
}
FLOATS = tuple(field.name for field in fields(Request) if field.type is float)
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
    """The request on one line; `where` ("in.jsonl line 7") begins every message. Raises RequestError as `checked`."""
    return checked(_load(line, where), where)


def checked(row: dict[str, Any], where: str) -> Request:
    """The request of a JSON object that was read at `where`, which begins every message.

    Raises RequestError naming the field. Duplicate ids and what depends on the base are others' to check.
    """
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
    request = Request(**{name: _plain(name, value) for name, value in row.items()})
    for name, problem in _contradictions(request):
        raise RequestError(f"{where}, field '{name}': {problem}", id=id)
    return request


def _plain(name: str, value: Any) -> Any:
    """What JSON says for a field, as `Request` holds it."""
    if name in FLOATS:
        return float(value)  # JSON's 0 or 1
    if isinstance(value, list):
        return tuple(value)
    if name == "logit_bias":
        return tuple(sorted((int(token), float(bias)) for token, bias in value.items()))
    return value if name != "json_schema" or value is None else json.dumps(value)


def _contradictions(request: Request) -> Iterator[tuple[str, str]]:
    """Fields that do not go with others, and why."""
    if request.max_tokens == 0 and not request.prompt_logprobs:
        yield "max_tokens", f"must be {FIELDS['max_tokens'][0]}, got 0"
    if request.revision is not None and request.policy is None:
        yield "revision", "the bare base has no revisions; name a policy"
    if request.best_of is not None and request.best_of < request.n:
        yield "best_of", f"must be at least n, which is {request.n}, got {request.best_of}"
    if request.remember is not None and (request.policy is None or request.choices > 1):
        what = (
            "the bare base has no memory; name a policy" if request.policy is None else "an answer is one, n is above 1"
        )
        yield "remember", what
    if request.regex is not None and request.json_schema is not None:
        yield "regex", "an answer can be held to a regex or to a json_schema, not to both"
    if len({token for token, _ in request.logit_bias}) < len(request.logit_bias):
        yield "logit_bias", "names a token twice"


def seed_of(request: Request, salt: int, choice: int = 0) -> int:
    """The seed of an answer: the request's, or one that follows from its id and `salt` (the run's seed) alone.

    Further choices have seeds that follow from the first. In [0, 2^32).
    """
    seed = _hashed([salt, request.id]) if request.seed is None else request.seed
    return _hashed([seed, choice]) if choice else seed


def _hashed(value: list[Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:4], "big")


def check_tokens(request: Request, vocab_size: int) -> None:
    """Raise RequestError for a token named by `request`, but for its prompt, that the base does not have."""
    named = [("logit_bias", token) for token, _ in request.logit_bias]
    for name, token in named + [("stop_token_ids", token) for token in request.stop_token_ids]:
        if token >= vocab_size:
            message = f"field '{name}': token id {token} is out of range, must be 0 to {vocab_size - 1}"
            raise RequestError(message, "token_out_of_range", request.id)


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
