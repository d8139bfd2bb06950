"""What a line of training data may say, and which of its tokens are learned.

Three forms, one a line: `{"messages": [{"role", "content"}, ...]}` (assistant turns are learned),
`{"prompt", "completion"}` (the completion and the end-of-text token), `{"text"}` (everything). Beside prompt and
completion there may be a `history`, a list of messages as text, which only a memory brings to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.data.jsonl import json_type, parse_object, text_field
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.packing import whole_pages

# Part of every data fingerprint: raise it when the same line becomes other tokens.
FORMAT_VERSION = 1
FORMS = ({"text"}, {"prompt", "completion"}, {"messages"})
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """One sequence: int32[n] tokens and bool[n] `loss`, where `loss[i]` says that token i is a target.

    Nothing precedes token 0, so `loss[0]` is False. The last token is a target only: the model reads `rows` of them.
    `history` are int32 tokens of the messages before it.
    """

    tokens: np.ndarray
    loss: np.ndarray
    history: tuple[np.ndarray, ...] = ()

    @property
    def rows(self) -> int:
        """Tokens the model reads, n - 1."""
        return len(self.tokens) - 1

    def pages(self, page_size: int, length: int) -> int:
        """Pages that it occupies where its history is cut into sequences of at most `length` tokens."""
        return whole_pages(self.rows, page_size) + history_pages(sum(map(len, self.history)), page_size, length)


def history_pages(tokens: int, page_size: int, length: int) -> int:
    """Pages of a history of so many tokens, in sequences of at most `length`."""
    whole, rest = divmod(tokens, length)
    return whole * whole_pages(length, page_size) + whole_pages(rest, page_size)


@dataclass(frozen=True)
class Record:
    """A checked line before it is tokenised: (text, learned) segments, tokenised apart as generation will meet them.

    `ends` appends a learned end-of-text token. `splits`: when too long, it becomes windows instead of being left out.
    `history` are messages before it.
    """

    segments: tuple[tuple[str, bool], ...]
    ends: bool
    splits: bool
    history: tuple[str, ...] = ()


def parse_record(line: bytes, where: str, tokenizer: Tokenizer) -> Record:
    """Checks one line of JSON; raises PefxError starting with `where` and naming the field that is wrong."""
    row = parse_object(line, where)
    form = next((form for form in FORMS if form & row.keys()), None)
    if form is None:
        raise PefxError(f"{where}: expected the field 'text', or 'prompt' and 'completion', or 'messages'")
    for field in row:
        if field not in form and not (field == "history" and "prompt" in form):
            allowed = " and ".join(f"'{name}'" for name in sorted(form))
            raise PefxError(f"{where}: unknown field '{field}' beside {allowed}")
    if "messages" in form:
        messages = _messages(row["messages"], where)
        try:
            segments = tokenizer.chat_segments(messages)
        except PefxError as error:
            raise PefxError(f"{where}: field 'messages': {error}") from None
        while not segments[-1][1]:
            segments.pop()
        return Record(tuple(segments), ends=False, splits=False)
    if "text" in form:
        return Record(((text_field(row, "text", where), True),), ends=True, splits=True)
    prompt, completion = text_field(row, "prompt", where), text_field(row, "completion", where)
    return Record(((prompt, False), (completion, True)), ends=True, splits=False, history=_history(row, where))


def _history(row: dict[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("history", [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise PefxError(f"{where}: field 'history' must be a list of messages, each a text that is not empty")
    return tuple(value)


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """The checked list of a conversation with at least one assistant turn that says something."""
    if not isinstance(value, list) or not value:
        raise PefxError(f"{where}: field 'messages' must be a list of at least one message, got {json_type(value)}")
    for number, message in enumerate(value, 1):
        here = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise PefxError(f"{here} must be an object with 'role' and 'content', got {json_type(message)}")
        for field in message:
            if field not in ("role", "content"):
                raise PefxError(f"{here}: unknown field '{field}'; a message has 'role' and 'content'")
        role = text_field(message, "role", here)
        text_field(message, "content", here)
        if role not in ROLES:
            raise PefxError(f"{here}: field 'role' is '{role}'; it must be one of {', '.join(ROLES)}")
    if not any(message["role"] == "assistant" and message["content"] for message in value):
        raise PefxError(f"{where}: field 'messages' has no assistant turn with content, so nothing to learn")
    return value


def tokenize(records: Sequence[Record], tokenizer: Tokenizer) -> list[Example]:
    """The whole example of each record, whatever its length, tokenised on all cores."""
    texts = [text for record in records for text in (*record.history, *(text for text, _ in record.segments))]
    ids = iter(tokenizer.encode_batch(texts))
    examples: list[Example] = []
    for record in records:
        history = tuple(np.asarray(next(ids), np.int32) for _ in record.history)
        tokens: list[int] = []
        loss: list[bool] = []
        for _, learned in record.segments:
            segment = next(ids)
            tokens += segment
            loss += [learned] * len(segment)
        if record.ends:
            tokens.append(tokenizer.eos)
            loss.append(True)
        loss[0] = False
        examples.append(Example(np.asarray(tokens, np.int32), np.asarray(loss, bool), history))
    return examples


def window_count(example: Example, splits: bool, length: int) -> int:
    """How many examples of at most `length` rows it becomes; 0 when it has nothing to learn or is too long to keep."""
    if not example.loss.any():
        return 0
    if splits:
        return -(-example.rows // length)
    return int(example.rows <= length)


def window(example: Example, index: int, length: int) -> Example:
    """Window `index` of `length` rows (the last may be shorter).

    Neighbours share one token, a target of the first and context of the second: every target is learned exactly once.
    """
    part = slice(index * length, (index + 1) * length + 1)
    loss = example.loss[part].copy()
    loss[0] = False
    return Example(example.tokens[part], loss, example.history)
