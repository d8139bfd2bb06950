"""pefx.serving.grammar: whatever a model draws under the masks, the answer has the form that was asked for."""

import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.serving import grammar
from pefx.serving.grammar import Constraint, Grammars

TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "assets" / "base")
V = TOKENIZER.vocab_size + 77  # as in bases whose vocabulary is padded
GRAMMARS = Grammars(TOKENIZER.to_json(), V, TOKENIZER.eos)


@dataclass(frozen=True)
class Asked:
    regex: str | None = None
    json_schema: str | None = None


def asked(schema: Any) -> Asked:
    return Asked(json_schema=json.dumps(schema))


def start(request: Asked, grammars: Grammars = GRAMMARS) -> Constraint:
    constraint = grammars.start(request)
    assert constraint is not None
    return constraint


def allowed(constraint: Constraint) -> list[int]:
    mask = constraint.mask()
    assert (mask.dtype, mask.shape) == (np.uint32, (-(-V // 32),))
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


CLOSING = {token for token in range(TOKENIZER.vocab_size) if set('"}]') & set(TOKENIZER.decode([token]))}


def walk(request: Asked, rng: random.Random, limit: int = 500) -> str:
    """The text of a random answer; fails where it does not end, or ends with anything but one end token."""
    constraint, tokens = start(request), []
    while len(tokens) < limit:
        choices = allowed(constraint)
        assert choices
        assert max(choices) < TOKENIZER.vocab_size
        assert constraint.over == (choices == [TOKENIZER.eos])
        closing = [token for token in choices if token in CLOSING]
        choices = closing if closing and rng.random() < 0.4 else choices
        end = TOKENIZER.eos in choices and rng.random() < 0.2
        token = TOKENIZER.eos if end else rng.choice(choices)
        constraint.push(token)
        if token == TOKENIZER.eos:
            return TOKENIZER.decode(tokens)
        tokens.append(token)
    raise AssertionError(f"no end after {TOKENIZER.decode(tokens)!r}")


REGEXES = [
    "yes|no|perhaps",
    "[a-z]{1,12}(-[0-9]{2,4})?",
    r"\d{3}-\d{4}",
    r"(?:\+|-)?[0-9]{1,6}(?:\.[0-9]{1,4})?",
    "é{2,5}ß?",
    "[\U0001f600-\U0001f64f]{1,4}",  # four bytes each, over several tokens
    "日本(語|人){1,3}",
    "[α-ω]{2,6}",
    "a{0,3}",  # the empty text too
    r"(?i:select) \w{1,8}",
    r"\"(?:[^\"\\]|\\.){0,20}\"",
    r"<\|im_start\|>|<\|endoftext\|>x",
    r"<\|im_start\|>",  # the spelling of a special token is text like any other
    "^anchored$",
]


@pytest.mark.parametrize("regex", REGEXES)
def test_any_answer_matches_the_regex(regex: str):
    seen = {walk(Asked(regex), random.Random(seed)) for seed in range(25)}
    assert [text for text in seen if not re.fullmatch(regex, text)] == []


def is_object(value: Any, required: dict[str, Callable[[Any], bool]], optional: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
    if not isinstance(value, dict) or not required.keys() <= value.keys() <= required.keys() | optional:
        return False
    return all(check(value[name]) for name, check in required.items())


def is_integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def is_tree(value: Any) -> bool:
    return is_object(value, {"v": is_integer(0, 9)}, {"l"}) and ("l" not in value or is_tree(value["l"]))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        lambda v: is_object(v, {"name": is_text, "age": is_integer(0, 150)}),
    ),
    ({"enum": ["a", "é", 3, None, [1, 2]]}, lambda v: v in ["a", "é", 3, None, [1, 2]]),
    (
        {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
        lambda v: 1 <= len(v) <= 3 and all(len(s) <= 4 for s in v),
    ),
    (
        {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$", "maxLength": 9},
        lambda v: bool(re.fullmatch("[A-Z]{2}[0-9]+", v)),
    ),
    ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, lambda v: v is None or isinstance(v, bool)),
    (
        {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "l": {"$ref": "#/$defs/tree"}},
                    "required": ["v"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/tree",
        },
        is_tree,
    ),
    ({"type": "string", "format": "date"}, lambda v: bool(re.fullmatch(r"\d{4}-\d\d-\d\d", v))),
]


@pytest.mark.parametrize(("schema", "valid"), SCHEMAS, ids=lambda value: "" if callable(value) else None)
def test_any_answer_satisfies_the_schema(schema: dict[str, Any], valid: Callable[[Any], bool]):
    for seed in range(25):
        text = walk(asked(schema), random.Random(seed))
        assert valid(json.loads(text)), text


def test_json_is_written_without_free_white_space():
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "additionalProperties": False}
    texts = {walk(asked({**schema, "required": ["a", "b"]}), random.Random(seed)) for seed in range(5)}
    assert texts == {'{"a": 1, "b": 2}'}


words = st.text("abcé→日", min_size=1, max_size=4)


@settings(max_examples=30)
@given(st.lists(words, min_size=1, max_size=4), st.integers(0, 2), st.integers(0, 2), st.integers(0, 99))
def test_drawn_alternatives_match(parts: list[str], low: int, more: int, seed: int):
    regex = f"(?:{'|'.join(map(re.escape, parts))}){{{low},{low + more + 1}}}"
    text = walk(Asked(regex), random.Random(seed))
    assert re.fullmatch(regex, text)


def test_no_constraint_where_none_is_asked():
    assert GRAMMARS.start(Asked()) is None
    GRAMMARS.check(Asked())


def test_at_the_end_only_the_end():
    constraint = start(Asked("ab"))
    for token in TOKENIZER.encode("ab"):
        assert not constraint.over
        constraint.push(token)
    assert constraint.over
    assert allowed(constraint) == [TOKENIZER.eos]
    for _ in range(2):
        constraint.push(TOKENIZER.eos)
        assert allowed(constraint) == [TOKENIZER.eos]


def test_a_token_that_is_not_allowed_is_a_bug():
    with pytest.raises(RuntimeError, match="field 'regex' does not allow"):
        start(Asked("ab")).push(TOKENIZER.encode("z")[0])


def test_constraints_of_one_grammar_do_not_meet():
    one, other = start(Asked("a[bc]{3}")), start(Asked("a[bc]{3}"))
    before = allowed(other)
    one.push(TOKENIZER.encode("a")[0])
    assert allowed(other) == before
    assert allowed(one) != before


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (Asked("a(b"), "field 'regex': cannot be used: unclosed group"),
        (Asked("(?=a)b"), "look-around"),
        (Asked(r"(a)\1"), "backreferences are not supported"),
        (Asked("(" * 3000 + "a" + ")" * 3000), "field 'regex'"),
        (Asked(r"[^\s\S]"), "field 'regex': cannot be followed after 0 tokens"),
        (Asked("a" * 70_000), "has 70,000 characters, at most 65,536"),
        (Asked("a", "{}"), "together"),
        (Asked(json_schema="{"), "field 'json_schema'"),
        (Asked(json_schema="[]"), "must be a JSON schema, an object"),
        (asked({"type": "foo"}), "field 'json_schema': cannot be used: Invalid type: foo"),
        (asked({"not": {}}), 'Unimplemented keys: ["not"]'),
        (asked({"$ref": "#/nowhere"}), "/nowhere"),
        (asked({"$ref": "http://example.com/s"}), "http://example.com/s"),
        (asked({"$ref": "#"}), "cannot be followed after 0 tokens"),
        (Asked("\0special 0\0"), "cannot be followed after 0 tokens"),  # what no text should spell
        (Asked("\0special 1\0"), "cannot be followed after 0 tokens"),
        (asked({"enum": []}), "Unsatisfiable"),
        (asked({"type": "string", "minLength": 3, "maxLength": 2}), "minLength"),
        (asked({"type": "string", "pattern": "a(b"}), "unclosed group"),
        (asked({"enum": [f"x{i}" for i in range(20_000)]}), "characters"),
    ],
)
def test_bad_grammar_names_field_and_trouble(request_: Asked, part: str):
    with pytest.raises(PefxError) as caught:
        GRAMMARS.check(request_)
    assert caught.value.kind == "invalid_request"
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_grammar_that_costs_too_much_ends_the_request_not_the_server():
    with pytest.raises(PefxError, match=r"field 'regex': cannot be followed after [1-9]") as caught:
        walk(Asked("(.*a.{40}){3}.*z{400}"), random.Random(0), limit=3000)
    assert caught.value.kind == "invalid_request"


def test_few_compiled_grammars_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar, "KEPT", 3)
    grammars = Grammars(TOKENIZER.to_json(), V, TOKENIZER.eos)
    compiled: list[str] = []
    compile_one = Grammars._compile
    monkeypatch.setattr(
        Grammars, "_compile", lambda self, field, text: compiled.append(text) or compile_one(self, field, text)
    )
    for regex in ("a", "b", "c", "a", "d", "a", "b"):
        grammars.check(Asked(regex))
    assert compiled == ["a", "b", "c", "d", "b"]
    assert len(grammars._kept) == 3


def test_threads_share_the_grammars():
    grammars = Grammars(TOKENIZER.to_json(), V, TOKENIZER.eos)
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for i in range(20):
                allowed(start(Asked(f"[ab]{{{1 + (seed + i) % 5}}}"), grammars))
        except BaseException as error:  # noqa: BLE001 (told below)
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_base_with_fewer_tokens_than_its_tokenizer():
    small = Grammars(TOKENIZER.to_json(), 300, TOKENIZER.eos)
    constraint = small.start(Asked("[a-z]+"))
    assert constraint is not None
    mask = constraint.mask()
    ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    assert 0 < ids.max() < 300


def test_tokenizer_that_is_none():
    with pytest.raises(PefxError, match="tokenizer cannot be constrained"):
        Grammars("{}", V, 0).check(Asked("a"))
