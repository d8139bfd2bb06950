"""What is answered, in OpenAI's forms and with what pefx adds: `token_ids` and `prompt_token_ids`, where asked for."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

FinishReason = Literal["stop", "length"]


class ErrorDetail(Struct):
    """`code` names the kind of the error, `param` the field it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct):
    error: ErrorDetail


class PromptDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    """Tokens. Those of all generated answers count, also of those that `best_of` left out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(Struct):
    """By token; offsets are in characters of the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """`model` is the base's name or `policy@number`; `system_fingerprint` names the base's weights. `remembered` is the
    revision that its memory was kept as; a stream tells it in its last event.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    remembered: str | UnsetType = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct):
    """`bytes` is null for a token that is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class ChatAnswer(Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """As `Completion`, of a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    remembered: str | UnsetType = UNSET


class Delta(Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET
    remembered: str | UnsetType = UNSET


class Model(Struct, kw_only=True):
    """A base (`revision` null) or a policy with the revision that its plain name is served by, or would be."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="seconds since 1970")]
    owned_by: str
    base: str
    revision: int | None = None
    rank: int | None = None
    stage: str | None = None


class ModelList(Struct, kw_only=True):
    """A page; the next begins `after` its `last_id`."""

    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool
    last_id: str | None


class Standing(Struct, kw_only=True):
    """A revision on this server. `current`: the policy's plain name is served by it."""

    policy: str
    revision: int
    content_hash: str
    stage: str
    current: bool


class AliasAnswer(Struct):
    """The aliases of a policy in the catalog."""

    policy: str
    aliases: dict[str, int]


class Health(Struct):
    """`status` is "ok", or says in a word what is the matter."""

    status: str


class Ready(Struct):
    """Whether requests should be sent here. Without a reachable catalog those of known policies are answered still."""

    status: str
    base: str
    catalog: Literal["none", "reachable", "unreachable"]
