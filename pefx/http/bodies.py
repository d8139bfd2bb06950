"""What may be asked, field by field, and how what may not is refused. OpenAI's fields, and extensions of pefx.

Ranges are those of `pefx.serving.requests`, which checks them once more. Fields of OpenAI's that change nothing here
(`user`, `store`, ...) are taken; what cannot be honoured is refused by name, never passed over.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from pefx.errors import PefxError
from pefx.serving.memory import Writes
from pefx.serving.requests import MAX_BIAS, MAX_CHOICES, MAX_PRIORITY, MAX_SEED, MAX_TEMPERATURE, MAX_TOP

Body = TypeVar("Body", bound=Struct)

MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_TIMEOUT = 86_400.0
TEXT = {"type": "string", "minLength": 1}
TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_SEED}, "minItems": 1}


def several(prompt: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a list of prompts."""
    return {"type": "array", "items": prompt, "minItems": 1, "maxItems": MAX_PROMPTS}


Text = Annotated[str, Meta(min_length=1)]
Token = Annotated[int, Meta(ge=0, le=MAX_SEED)]
Count = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_SEED)]
TopCount = Annotated[int, Meta(ge=0, le=MAX_TOP)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]
ModelName = Annotated[
    str, Meta(min_length=1, max_length=256, description="the base's name, policy, policy@3, policy@alias")
]
PolicyName = Annotated[str, Meta(min_length=1, max_length=256)]
Prompt = Annotated[
    str | list[str | int | list[int]],
    Meta(
        description="a text, several texts, token ids, or several lists of token ids",
        extra_json_schema={"allOf": [{"anyOf": [TEXT, several(TEXT), TOKENS, several(TOKENS)]}]},
    ),
]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: one more event at the end, with the counts of tokens."""

    include_usage: bool = False


class AnyText(Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    """No constraint."""


class JsonObject(Struct, tag="json_object", tag_field="type", forbid_unknown_fields=True):
    """The answer is a JSON object."""


class Schema(Struct, forbid_unknown_fields=True):
    """A JSON schema; `name`, `description` and `strict` change nothing, it always holds."""

    schema: dict[str, Any]
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None


class JsonSchema(Struct, tag="json_schema", tag_field="type", forbid_unknown_fields=True):
    """The answer is JSON that fits the schema."""

    json_schema: Schema


class Generating(Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chats have in common."""

    model: ModelName
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    n: Count | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool | None = None
    regex: Text | None = None
    guided_regex: Text | None = None
    response_format: AnyText | JsonObject | JsonSchema | None = None
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT, description="seconds")] | None = None
    return_token_ids: bool | None = None
    writes: Annotated[Writes, Meta(description="what an adapter with a memory writes to it")] | None = None
    remember: Annotated[PolicyName, Meta(description="the policy as which its memory is kept")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken, and without any effect:
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionBody(Generating, kw_only=True, forbid_unknown_fields=True):
    """A text to go on with. `max_tokens` 0 only with `echo`: the prompt's own log-probabilities."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: TopCount | None = None


class TextPart(Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    text: str


class Message(Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. `name` is taken, and without any effect."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Generating, kw_only=True, forbid_unknown_fields=True):
    """A conversation to answer."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopCount | None = None


Alias = Annotated[str, Meta(pattern="^(?![0-9]+$)[A-Za-z0-9._:=+-]{1,64}$", description="a label that is no number")]


class RevisionBody(Struct, forbid_unknown_fields=True):
    """A revision: `policy@number`, `policy@alias`, or `policy` for its latest."""

    model: ModelName


class AliasBody(Struct, forbid_unknown_fields=True):
    """Let `alias` name the revision `model`."""

    model: ModelName
    alias: Alias


class RollbackBody(Struct, forbid_unknown_fields=True):
    """Let `alias` of `policy` name an older revision: `to`, or the newest before."""

    policy: ModelName
    alias: Alias = "latest"
    to: Annotated[int, Meta(ge=1, le=MAX_SEED)] | None = None


# OpenAI's fields that a server of adapters cannot honour, so that a refusal can say so.
NOT_HONOURED = {
    *("audio", "context_management", "function_call", "functions", "modalities", "prediction", "reasoning_effort"),
    *("suffix", "tool_choice", "tools", "verbosity", "web_search_options"),
    *("prompt", "messages", "echo", "best_of", "top_logprobs", "max_completion_tokens"),  # of the other endpoint
}
PLACE = re.compile(r"(?P<problem>.*?)(?: - at (?:`key` in )?`\$\.?(?P<place>[^`]*)`)?", re.DOTALL)
NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>[^`]*)`")


def decode(kind: type[Body], data: bytes) -> Body:
    """The body as a `kind`. PefxError of kind "invalid_json", or "invalid_request" that names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise PefxError(_problem(str(error)), "invalid_request") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PefxError(f"the body is no JSON: {error}", "invalid_json") from None


def _problem(message: str) -> str:
    """A complaint of msgspec with its field first."""
    found = PLACE.fullmatch(message)
    assert found is not None
    place = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found["place"] or "").strip(".")
    named = NAMED.match(found["problem"])
    if named is None:
        return f"field '{place}': {found['problem']}" if place else f"the body: {found['problem']}"
    field = ".".join(filter(None, (place, named["name"])))
    if "missing" in named[0]:
        return f"field '{field}': missing, but required"
    known = not place and named["name"] in NOT_HONOURED
    why = "this server cannot honour it here; leave it out" if known else "unknown; leave it out"
    return f"field '{field}': {why}"
