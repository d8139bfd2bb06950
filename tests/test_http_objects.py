"""Answers as JSON: what is not asked for is not there."""

import msgspec

from pefx.http.objects import Completion, CompletionChoice, Delta, PromptDetails, Usage


def test_what_is_not_asked_for_is_left_out() -> None:
    choice = CompletionChoice(index=0, text="a", finish_reason="stop")
    assert msgspec.to_builtins(choice) == {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}
    event = Completion(id="1", created=0, model="m", system_fingerprint="f", choices=[choice])
    assert "usage" not in msgspec.to_builtins(event)
    assert msgspec.to_builtins(Delta()) == {}


def test_usage() -> None:
    used = msgspec.to_builtins(Usage(1, 2, 3, PromptDetails(1)))
    assert used["prompt_tokens_details"] == {"cached_tokens": 1}
