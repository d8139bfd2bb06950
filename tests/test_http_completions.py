"""Completions as OpenAI has them: prompts, echo, log-probabilities, choices, streams."""

from collections.abc import Iterator
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http.bodies import CompletionBody
from pefx.http.completions import completion_fields
from tests.http_fakes import Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as started:
        yield started


def done(server: Live, **body: Any) -> Any:
    answer = server.complete(**body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Live, **body: Any) -> tuple[int, str | None]:
    answer = server.complete(**body)
    return answer.status_code, answer.json()["error"]["param"]


def test_an_answer(server: Live) -> None:
    found = done(server, max_tokens=5, ignore_eos=True)
    (choice,) = found["choices"]
    assert (found["object"], found["model"], found["system_fingerprint"]) == ("text_completion", "tiny", "a" * 12)
    assert (len(choice["text"]), choice["finish_reason"], choice["logprobs"]) == (5, "length", None)
    assert found["usage"]["prompt_tokens"] == 3
    assert found["usage"]["completion_tokens"] == 5
    assert found["usage"]["total_tokens"] == 8
    assert "token_ids" not in choice


def test_the_same_seed_is_the_same_answer_and_its_prompt_is_cached(server: Live) -> None:
    one, two = (done(server, prompt="a longer prompt", seed=9) for _ in range(2))
    assert one["choices"] == two["choices"]
    assert two["usage"]["prompt_tokens_details"]["cached_tokens"] == len("a longer prompt") - 4
    assert one["id"] != two["id"]


@pytest.mark.parametrize(
    "prompt", ["abc", ["abc"], [97, 98, 99], [[97, 98, 99]]], ids=["text", "texts", "tokens", "lists"]
)
def test_prompts_in_four_forms(server: Live, prompt: Any) -> None:
    assert done(server, prompt=prompt)["choices"] == done(server)["choices"]


def test_several_prompts_and_choices_are_numbered_through(server: Live) -> None:
    found = done(server, prompt=["abc", "xyz"], n=2, max_tokens=4)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["choices"][0]["text"] == done(server, max_tokens=4)["choices"][0]["text"]
    assert found["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    ("prompt", "param"),
    [("", "prompt"), ([], "prompt"), ([""], "prompt"), ([[]], "prompt"), (["a", 1], "prompt"), ([1, [1]], "prompt")],
)
def test_prompts_that_are_none(server: Live, prompt: Any, param: str) -> None:
    assert refused(server, prompt=prompt) == (400, param)


def test_tokens_and_lengths_that_do_not_fit(server: Live) -> None:
    assert refused(server, prompt=[300]) == (400, "prompt")
    assert refused(server, prompt="a" * 600) == (400, "prompt")
    assert refused(server, prompt=["a"] * 129) == (400, "prompt")


def test_logprobs(server: Live) -> None:
    choice = done(server, logprobs=2, max_tokens=3, ignore_eos=True)["choices"][0]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert found["text_offset"] == [0, 1, 2]
    assert all(isinstance(value, float) for value in found["token_logprobs"])
    assert [len(row) for row in found["top_logprobs"]] == [2, 2, 2]
    assert done(server, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_echo_with_logprobs_scores_the_prompt(server: Live) -> None:
    choice = done(server, echo=True, logprobs=1, max_tokens=2, ignore_eos=True)["choices"][0]
    assert choice["text"].startswith("abc")
    assert choice["logprobs"]["tokens"][:3] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"][:3] == [None, -98 / 256, -99 / 256]
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == 5


@pytest.mark.parametrize("logprobs", [None, 1])
def test_nothing_but_the_prompt(server: Live, logprobs: int | None) -> None:
    choice = done(server, echo=True, max_tokens=0, logprobs=logprobs)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert (choice["logprobs"] is None) == (logprobs is None)


def test_stop(server: Live) -> None:
    text = done(server, ignore_eos=True)["choices"][0]["text"]
    choice = done(server, ignore_eos=True, stop=text[3:5])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[:3], "stop")
    assert done(server, ignore_eos=True, stop=["%", text[3:5]])["choices"][0] == choice


def test_token_ids(server: Live) -> None:
    choice = done(server, return_token_ids=True, max_tokens=2, ignore_eos=True)["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98, 99]
    assert bytes(choice["token_ids"]).decode() == choice["text"]


def streamed(server: Live, **body: Any) -> list[Any]:
    return server.events("/v1/completions", {"model": "tiny", "prompt": "abc", "seed": 1, "stream": True} | body)


@pytest.mark.parametrize("more", [{}, {"stop": "zz"}, {"n": 2}, {"echo": True}, {"prompt": ["abc", "xyz"]}], ids=str)
def test_a_stream_says_what_the_whole_says(server: Live, more: dict[str, Any]) -> None:
    whole = done(server, **more)["choices"]
    texts, reasons = {choice["index"]: "" for choice in whole}, {}
    for event in streamed(server, **more):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    assert [texts[choice["index"]] for choice in whole] == [choice["text"] for choice in whole]
    assert [reasons[choice["index"]] for choice in whole] == [choice["finish_reason"] for choice in whole]


def test_a_stream_with_logprobs_tokens_and_usage(server: Live) -> None:
    more: dict[str, Any] = {"logprobs": 1, "return_token_ids": True}
    whole = done(server, **more)
    *events, last = streamed(server, **more, stream_options={"include_usage": True})
    parts = [choice for event in events for choice in event["choices"]]
    logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for found in logprobs for x in found[name]] == whole["choices"][0]["logprobs"][name]
    assert [x for part in parts for x in part.get("token_ids", [])] == whole["choices"][0]["token_ids"]
    assert parts[0]["prompt_token_ids"] == [97, 98, 99]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True, "echo": True, "logprobs": 1}, "echo"),
        ({"stream": True, "best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"regex": "a", "guided_regex": "a"}, "guided_regex"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
        ({"regex": "("}, "regex"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    ],
)
def test_what_does_not_go_together(server: Live, body: dict[str, Any], param: str) -> None:
    assert refused(server, **body) == (400, param)


def test_defaults_are_those_of_openai() -> None:
    assert completion_fields(CompletionBody(model="m", prompt="a"))["max_tokens"] == 16
    with pytest.raises(PefxError):
        completion_fields(CompletionBody(model="m", prompt="a", max_tokens=0))
