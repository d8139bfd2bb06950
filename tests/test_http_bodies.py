"""What bodies may say, and how what they may not is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.http.bodies import ChatBody, CompletionBody, JsonSchema, decode

USER = [{"role": "user", "content": "hi"}]


def refused(kind: type, body: object) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(PefxError) as caught:
        decode(kind, data)
    assert caught.value.kind in ("invalid_request", "invalid_json")
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": "a"}, "field 'model': missing"),
        ({"model": "m", "prompt": "a", "n": "two"}, "field 'n': Expected `int"),
        ({"model": "m", "prompt": "a", "temperature": 1000}, "field 'temperature': Expected `float` <= 100"),
        ({"model": "m", "prompt": "a", "suffix": "b"}, "field 'suffix': this server cannot honour it"),
        ({"model": "m", "prompt": "a", "messages": []}, "field 'messages': this server cannot honour it here"),
        ({"model": "m", "prompt": "a", "temprature": 1}, "field 'temprature': unknown"),
        ({"model": "m", "prompt": {"a": 1}}, "field 'prompt': Expected"),
        ({"model": "m", "prompt": "a", "stop": ["a"] * 17}, "field 'stop'"),
        ({"model": "m", "prompt": "a", "stop": ""}, "field 'stop'"),
        ({"model": "m", "prompt": "a", "logit_bias": {"x": 1}}, "field 'logit_bias"),
        ({"model": "m", "prompt": "a", "stream_options": {"x": 1}}, "field 'stream_options.x': unknown"),
        ({"model": "m", "prompt": "a", "response_format": {"type": "xml"}}, "field 'response_format"),
        ([], "the body: Expected `object`"),
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b'{"model": "\xff"}', "the body is no JSON"),
        (b'{"model": "\\ud800"}', "the body is no JSON"),
        (b'{"model":' + b"[" * 100_000, "field 'model': Expected `str`"),
        (b'{"metadata":' + b'{"a":' * 100_000, "the body is no JSON"),
    ],
)
def test_what_is_wrong_is_named(body: object, told: str) -> None:
    assert refused(CompletionBody, body).startswith(told)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "field 'messages': Expected `array` of length >= 1"),
        ([{"role": "tool", "content": "a"}], "field 'messages.0.role': Invalid enum value 'tool'"),
        ([{"role": "user", "content": None}], "field 'messages.0.content': Expected"),
        ([{"role": "user"}], "field 'messages.0.content': missing"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "field 'messages.0.content.0.type': Invalid value 'image_url'",
        ),
        ([*USER, {"role": "assistant", "content": "", "tool_calls": []}], "field 'messages.1.tool_calls': unknown"),
    ],
)
def test_messages(messages: object, told: str) -> None:
    assert refused(ChatBody, {"model": "m", "messages": messages}).startswith(told)


def test_what_changes_nothing_is_taken() -> None:
    more = {"user": "u", "store": False, "metadata": {"a": 1}, "parallel_tool_calls": True, "service_tier": "auto"}
    body = decode(ChatBody, json.dumps({"model": "m", "messages": USER, "stream_options": None, **more}).encode())
    assert body.user == "u"


def test_parts_of_a_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = decode(ChatBody, json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())
    assert body.messages[0].text == "ab"


def test_a_schema_is_as_it_was() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = decode(CompletionBody, json.dumps({"model": "m", "prompt": "a", "response_format": given}).encode())
    assert isinstance(body.response_format, JsonSchema)
    assert body.response_format.json_schema.schema == schema


@given(st.one_of(st.binary(max_size=200), st.from_type(dict[str, int | str | list[int] | None]).map(json.dumps)))
def test_anything_else_is_refused_in_one_line(data: bytes | str) -> None:
    with pytest.raises(PefxError) as caught:
        decode(CompletionBody, data if isinstance(data, bytes) else data.encode())
    assert str(caught.value)
