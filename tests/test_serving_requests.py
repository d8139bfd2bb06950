"""pefx.serving.requests: every bad line is refused with its line and field, every good one is read as written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.requests import (
    FIELDS,
    MAX_SEED,
    Request,
    RequestError,
    check_tokens,
    parse_line,
    prompt_tokens,
    seed_of,
)


def line(**fields: Any) -> bytes:
    return json.dumps({"id": "a", "prompt": "x", **fields}).encode()


def refused(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_line(data, "in.jsonl line 7")
    assert str(caught.value).startswith("in.jsonl line 7")
    assert "\n" not in str(caught.value)
    return caught.value


def test_full_request_is_read_as_written():
    fields = {
        "policy": "alice",
        "revision": 3,
        "prompt": [1, 2],
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.25,
        "repetition_penalty": 2,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "logit_bias": {"7": -100, "3": 1},
        "seed": 9,
        "n": 2,
        "best_of": 4,
        "stop": ["end", "\n"],
        "stop_token_ids": [5, 6],
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 20,
        "prompt_logprobs": True,
        "json_schema": {"type": "object"},
        "priority": -3,
        "writes": "all",
    }
    as_held: dict[str, Any] = {
        "prompt": (1, 2),
        "logit_bias": ((3, 1.0), (7, -100.0)),
        "stop": ("end", "\n"),
        "stop_token_ids": (5, 6),
        "json_schema": '{"type": "object"}',
    }
    floats = ("temperature", "repetition_penalty", "presence_penalty")
    as_held |= {name: float(fields[name]) for name in floats}
    assert parse_line(line(**fields), "") == Request("a", **{**fields, **as_held})
    assert set(fields) | {"id", "regex", "remember"} == set(FIELDS)
    assert parse_line(line(policy="ann", remember="ann/notes"), "").remember == "ann/notes"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"regex": "a+", "json_schema": {}}, "regex"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"revision": 1}, "revision"),
        ({"logit_bias": {"7": 1, "07": 2}}, "logit_bias"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, named):
    with pytest.raises(RequestError, match=f"f.jsonl line 3, field '{named}'"):
        parse_line(line(**fields), "f.jsonl line 3")


def test_tokens_that_the_base_does_not_have_are_refused():
    for name, value in (("logit_bias", {"9": 1}), ("stop_token_ids", [9])):
        request = parse_line(line(**{name: value}), "")
        check_tokens(request, 10)
        with pytest.raises(RequestError, match=f"field '{name}': token id 9 is out of range, must be 0 to 8"):
            check_tokens(request, 9)


def test_choices_have_seeds_of_their_own_that_follow_from_the_first():
    for request in (Request("a", "x", seed=7), Request("a", "x")):
        seeds = [seed_of(request, 3, choice) for choice in range(50)]
        assert seeds[0] == seed_of(request, 3)
        assert len(set(seeds)) == 50
    assert seed_of(Request("a", "x", seed=7), 1, 5) == seed_of(Request("b", "x", seed=7), 2, 5)


def test_defaults_are_the_base_sampled():
    assert parse_line(line(), "") == Request("a", "x", max_tokens=16, temperature=1.0, n=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", []),
        ("prompt", None),
        ("prompt", [1, "2"]),
        ("prompt", [1.0]),
        ("prompt", [True]),
        ("policy", 3),
        ("policy", ""),
        ("revision", 0),
        ("revision", "1"),
        ("revision", "a b"),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", "0"),
        ("temperature", 1e9),
        ("temperature", False),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", None),
        ("top_k", -1),
        ("top_k", 2.0),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", "1"),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", [1]),
        ("n", 0),
        ("n", 129),
        ("best_of", 0),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 3),
        ("ignore_eos", None),
        ("top_logprobs", 21),
        ("top_logprobs", True),
        ("regex", ""),
        ("json_schema", "{}"),
        ("priority", 101),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 0.5),
        ("stop", "end"),
        ("stop", [""]),
        ("stop", [1]),
        ("logprobs", 1),
        ("prompt_logprobs", "yes"),
    ],
)
def test_wrong_value_names_field_and_id(field: str, value: Any):
    error = refused(line(policy="p", **{"revision": 1, field: value}) if field != "policy" else line(policy=value))
    assert f"'{field}'" in str(error)
    assert (error.id, error.kind) == ("a", "invalid_request")


def test_no_tokens_wanted_is_fine_only_to_score_the_prompt():
    assert parse_line(line(max_tokens=0, prompt_logprobs=True), "").max_tokens == 0
    assert "max_tokens" in str(refused(line(max_tokens=0)))


def test_unknown_field_and_revision_of_the_base():
    assert '"polcy"' in str(refused(line(polcy="alice")))
    assert "'revision'" in str(refused(line(revision=1)))


@pytest.mark.parametrize("id", [None, 3, "", [], {}, True])
def test_unusable_id_gives_none(id: Any):
    error = refused(line(id=id))
    assert error.id is None
    assert "'id'" in str(error)


def test_missing_id_and_prompt():
    assert refused(b'{"prompt": "x"}').id is None
    assert refused(b'{"id": "a"}').id == "a"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b'{"id": "a", "prompt"', "column"),
        (b'["a"]', "object"),
        (b"null", "object"),
        (b'{"id": "a", "prompt": "x", "top_p": NaN}', "NaN"),
        (b'{"id": "a", "id": "b", "prompt": "x"}', "'id' is given twice"),
        (b'{"id": "\xff", "prompt": "x"}', "UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b'{"id": "a", "prompt": [' + b"9" * 5000 + b"]}", "JSON"),
    ],
)
def test_broken_json_has_no_id(data: bytes, part: str):
    error = refused(data)
    assert (error.id, error.kind) == (None, "invalid_json")
    assert part in str(error)


def test_half_a_surrogate_pair_is_no_text():
    assert refused(rb'{"id": "\ud800", "prompt": "x"}').id is None
    assert "'prompt'" in str(refused(rb'{"id": "a", "prompt": "\ud800"}'))
    assert "'stop'" in str(refused(rb'{"id": "a", "prompt": "x", "stop": ["\udfff"]}'))


def test_huge_values_do_not_make_huge_messages():
    assert len(str(refused(line(policy=["p"] * 10_000)))) < 300


def parsed_or_refused(data: bytes) -> Request | RequestError:
    try:
        return parse_line(data, "here")
    except RequestError as error:
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aé→\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), json_values))
def test_any_object_is_a_request_or_a_refusal(row: dict[str, Any]):
    outcome = parsed_or_refused(json.dumps(row).encode())
    assert outcome.id == row.get("id") or (isinstance(outcome, RequestError) and outcome.id is None)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_a_refusal(data: bytes):
    outcome = parsed_or_refused(data)
    assert isinstance(outcome, Request) or str(outcome).startswith("here")


def tokens_of(max_tokens: int = 1, prompt: Any = (1, 2, 3), context: int = 8) -> list[int]:
    request = Request("a", prompt, max_tokens=max_tokens, prompt_logprobs=True)
    return prompt_tokens(request, lambda text: [ord(c) % 10 for c in text], vocab_size=10, context=context)


def test_prompt_tokens():
    assert tokens_of() == [1, 2, 3]
    assert tokens_of(prompt="02") == [8, 0]
    assert tokens_of(prompt=(1,) * 7) == [1] * 7
    assert tokens_of(prompt=(1,) * 8, max_tokens=0) == [1] * 8


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "kind", "part"),
    [
        ((1, 10), 1, "token_out_of_range", "token id 10 at index 1"),
        ((-1,), 1, "token_out_of_range", "0 to 9"),
        ((1,) * 8, 1, "prompt_too_long", "has 8 tokens, at most 7"),
        ((1,) * 9, 0, "prompt_too_long", "has 9 tokens, at most 8"),
    ],
)
def test_prompt_that_does_not_fit_the_base(prompt: tuple[int, ...], max_tokens: int, kind: str, part: str):
    with pytest.raises(RequestError, match=part) as caught:
        tokens_of(max_tokens, prompt)
    assert caught.value.kind == kind
    assert "'prompt'" in str(caught.value)


def test_text_without_tokens_is_refused():
    with pytest.raises(RequestError, match="no tokens"):
        prompt_tokens(Request("a", "x"), lambda text: [], 10, 8)


def test_seed_is_the_given_one_or_follows_from_the_id():
    assert seed_of(Request("a", "x", seed=0), 5) == 0
    derived = {seed_of(Request(id, "x"), salt) for id in "abc" for salt in (0, 1)}
    assert len(derived) == 6
    assert all(0 <= seed <= MAX_SEED for seed in derived)
    assert seed_of(Request("a", "x", policy="p"), 0) == seed_of(Request("a", "y"), 0)
