"""Constrained output: which tokens may come next so that an answer matches a regular expression or a JSON schema.

Grammars are compiled by `llguidance` and kept by their source text. What is allowed follows from the text and the
tokens so far alone, so every process of a job allows the same.
"""

import json
import threading
from collections import OrderedDict
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from pefx.errors import PefxError

MAX_SOURCE = 1 << 16  # characters of a regular expression or of a schema's JSON
KEPT = 128  # compiled grammars that are kept
# What one request may cost at most: some tens of milliseconds to begin, some in a step, tens of megabytes.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# JSON as `json.dumps` writes it: free white space would let a model fill its answer with blanks.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@runtime_checkable
class Asks(Protocol):
    """What is asked of a request; at most one of the two is not None."""

    @property
    def regex(self) -> str | None: ...

    @property
    def json_schema(self) -> str | None: ...


class Constraint:
    """The grammar of one sequence, at the place that its tokens have reached."""

    def __init__(self, matcher: LLMatcher, field: str, vocab_size: int, known: int, eos: int):
        self._matcher, self._field, self._vocab_size, self._known = matcher, field, vocab_size, known
        self._eos = eos
        self._tokens = 0

    def mask(self) -> np.ndarray:
        """uint32 [ceil(V / 32)]: bit `i % 32` of word `i // 32` says whether token `i` may come next. Never empty.

        At the end of a grammar that cannot go on it is the end token alone. Raises PefxError (kind "invalid_request")
        where no token can lead on: the grammar costs too much, or the vocabulary cannot spell what it wants.
        """
        bits = allocate_token_bitmask(1, self._known)
        fill_next_token_bitmask(self._matcher, bits)
        words = np.zeros(-(-self._vocab_size // 32), np.uint32)
        shared = min(len(words), bits.shape[1])
        words[:shared] = bits[0, :shared].view(np.uint32)
        if self._vocab_size % 32:
            words[-1] &= np.uint32((1 << self._vocab_size % 32) - 1)
        if self._matcher.is_error() or not words.any() or not self._takes_the_only(words):
            why = _line(self._matcher.get_error()) or "no token can come next"
            raise _refusal(self._field, f"cannot be followed after {self._tokens} tokens of the answer ({why})")
        return words

    def _takes_the_only(self, words: np.ndarray) -> bool:
        """Whether `push` takes the token of a mask of one, which the library makes of text: see `_unspelled`."""
        (places,) = words.nonzero()
        word = int(words[places[0]])
        if len(places) > 1 or word & (word - 1):
            return True
        token = 32 * int(places[0]) + word.bit_length() - 1
        return self._matcher.is_accepting() if token == self._eos else self._matcher.validate_tokens([token]) == 1

    def push(self, token: int) -> None:
        """One more token of the answer. Raises RuntimeError if the mask did not allow it."""
        if token == self._eos and self.over:
            return
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} was drawn, which the grammar of field '{self._field}' does not allow")
        self._tokens += 1

    @property
    def over(self) -> bool:
        """Whether what is there is complete and nothing but the end token can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()


class Grammars:
    """The grammars of one server; `check` and `start` may be called from any thread.

    `tokenizer_json` is the text of a `tokenizer.json`, `vocab_size` the base's V: ids beyond the tokenizer's are never
    allowed. `eos` is the id that ends a text.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos: int):
        self._source, self._vocab_size, self._eos = tokenizer_json, vocab_size, eos
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, request: Asks) -> None:
        """Raise PefxError (kind "invalid_request") naming the field, unless the request's grammar can be followed."""
        self.start(request)

    def start(self, request: Asks) -> Constraint | None:
        """The constraint of a new answer, None where the request has none. Raises PefxError as `check`."""
        if request.regex is not None and request.json_schema is not None:
            raise _refusal("json_schema", "cannot be given together with field 'regex'")
        if request.regex is not None:
            field, source = "regex", request.regex
        elif request.json_schema is not None:
            field, source = "json_schema", request.json_schema
        else:
            return None
        return self._begin(self._compiled(field, source), field)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Made when first needed: a large vocabulary takes a second."""
        try:
            return LLTokenizer(_unspelled(self._source), eos_token=self._eos)
        except (ValueError, KeyError, RuntimeError) as error:
            message = f"this base's tokenizer cannot be constrained: {_line(str(error))}"
            raise PefxError(message, "invalid_request") from None

    def _begin(self, matcher: LLMatcher, field: str) -> Constraint:
        with self._lock:
            own = matcher.deep_copy()
        return Constraint(own, field, self._vocab_size, self._tokenizer.vocab_size, self._eos)

    def _compiled(self, field: str, source: str) -> LLMatcher:
        """The grammar's matcher at its start, kept or made. Others are served while one is made."""
        with self._lock:
            matcher = self._kept.get((field, source))
        if matcher is None:
            matcher = self._compile(field, source)
        with self._lock:
            self._kept[field, source] = matcher
            self._kept.move_to_end((field, source))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _compile(self, field: str, source: str) -> LLMatcher:
        if len(source) > MAX_SOURCE:
            raise _refusal(field, f"has {len(source):,} characters, at most {MAX_SOURCE:,} are allowed")
        try:
            if field == "regex":
                grammar = LLMatcher.grammar_from_regex(source)
            else:
                grammar = LLMatcher.grammar_from_json_schema(source, overrides=JSON_STYLE)  # type: ignore[arg-type]
        except ValueError as error:
            raise _refusal(field, f"must be a JSON schema, an object: {_line(str(error))}") from None
        matcher = LLMatcher(self._tokenizer, grammar, limits=LIMITS)
        if matcher.is_error():
            raise _refusal(field, f"cannot be used: {_line(matcher.get_error())}")
        # A grammar that nothing matches compiles; it fails at its first step.
        self._begin(matcher, field).mask()
        return matcher


def _unspelled(tokenizer_json: str) -> str:
    """The tokenizer with special tokens that no text spells.

    Where only one text can follow, the library allows the token that its tokenizer makes of that text. Of a special
    token's spelling it would make the special token, which it then refuses.
    """
    tokenizer = json.loads(tokenizer_json)
    vocabulary = tokenizer["model"]["vocab"]
    for token in tokenizer["added_tokens"]:
        if token["special"]:
            spelling, token["content"] = token["content"], f"\0special {token['id']}\0"
            if isinstance(vocabulary, dict) and spelling in vocabulary:
                vocabulary[token["content"]] = vocabulary.pop(spelling)
    return json.dumps(tokenizer)


def _refusal(field: str, what: str) -> PefxError:
    return PefxError(f"field '{field}': {what}", "invalid_request")


def _line(message: str) -> str:
    """The telling line of what the library says: of a regular expression's trouble the one that begins "error:"."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "non-verbose" not in line]
    found = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return found.removeprefix("error: ")[:300]
