"""Chats as OpenAI has them."""

from collections.abc import Iterator
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http.bodies import ChatBody, Message
from pefx.http.chat import chat_fields
from tests.http_fakes import Letters, Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as started:
        yield started


def done(server: Live, **body: Any) -> Any:
    answer = server.chat(**body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer(server: Live) -> None:
    found = done(server, max_tokens=4, ignore_eos=True)
    (choice,) = found["choices"]
    assert found["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 4
    assert found["usage"]["prompt_tokens"] == len("<user>hello<assistant>")


def test_the_template_writes_the_conversation(server: Live) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    found = done(server, messages=messages, return_token_ids=True)["choices"][0]
    assert Letters().decode(found["prompt_token_ids"]) == "<system>be kind<user>ab<assistant>"


def test_what_the_template_refuses_is_the_callers_to_hear(server: Live) -> None:
    answer = server.chat(messages=[{"role": "assistant", "content": "a"}])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages")
    assert "who began?" in error["message"]
    assert "somewhere" not in error["message"]


def test_without_a_bound_the_answer_may_fill_the_context(server: Live) -> None:
    found = done(server, ignore_eos=True)
    assert found["usage"]["total_tokens"] == 512
    assert done(server, ignore_eos=True, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_logprobs(server: Live) -> None:
    choice = done(server, logprobs=True, top_logprobs=2, max_tokens=2, ignore_eos=True)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == choice["message"]["content"]
    assert content[0]["bytes"] == list(content[0]["token"].encode())
    assert len(content[0]["top_logprobs"]) == 2
    plain = done(server, logprobs=True, max_tokens=2, ignore_eos=True)["choices"][0]["logprobs"]["content"]
    assert plain[0]["top_logprobs"] == []


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stop": ["q", "z"]}], ids=str)
def test_a_stream_says_what_the_whole_says(server: Live, more: dict[str, Any]) -> None:
    whole = done(server, **more)["choices"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "seed": 1, "stream": True}
    parts = [c for event in server.events("/v1/chat/completions", body | more) for c in event["choices"]]
    for choice in whole:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert [part["finish_reason"] for part in own][-1] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in own[:-1])


def test_a_stream_with_logprobs_and_usage(server: Live) -> None:
    more: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    whole = done(server, **more)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "seed": 1, "stream": True, **more}
    *events, last = server.events("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    parts = [c for event in events for c in event["choices"]]
    content = [item for part in parts if part["logprobs"] for item in part["logprobs"]["content"]]
    assert content == whole["choices"][0]["logprobs"]["content"]
    assert [x for part in parts for x in part.get("token_ids", [])] == whole["choices"][0]["token_ids"]
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


@pytest.mark.parametrize("more", [{"max_tokens": 1, "max_completion_tokens": 2}, {"top_logprobs": 1}])
def test_what_does_not_go_together(more: dict[str, Any]) -> None:
    with pytest.raises(PefxError, match="field"):
        chat_fields(ChatBody(model="m", messages=[Message(role="user", content="a")], **more), 8)
