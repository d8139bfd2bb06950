"""What each form of line becomes, which tokens are learned, and what is said of a line that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.data.formats import Example, parse_record, tokenize, window, window_count
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError

TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "assets" / "base")


def example(row: object) -> Example:
    return tokenize([parse_record(json.dumps(row).encode(), "f: line 3", TOKENIZER)], TOKENIZER)[0]


def learned(item: Example) -> str:
    return TOKENIZER.decode(item.tokens[item.loss].tolist())


def test_text_is_learned_whole_but_for_its_first_token() -> None:
    item = example({"text": "import os\n"})
    assert TOKENIZER.decode(item.tokens.tolist()) == "import os\n<|endoftext|>"
    assert item.loss.tolist() == [False] + [True] * item.rows
    assert item.tokens.dtype == np.int32


def test_completion_and_end_are_learned_and_tokenised_apart_from_the_prompt() -> None:
    item = example({"prompt": "def f", "completion": "oo():"})
    assert learned(item) == "oo():<|endoftext|>"
    assert item.tokens[~item.loss].tolist() == TOKENIZER.encode("def f")


def test_a_completion_without_prompt_keeps_its_first_token_as_context() -> None:
    item = example({"prompt": "", "completion": "a b c"})
    assert item.loss.tolist() == [False] + [True] * item.rows


def test_assistant_turns_are_learned_with_their_end_and_the_prompt_is_what_serving_sends() -> None:
    messages = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Thanks."},
    ]
    item = example({"messages": messages})
    assert learned(item) == "2<|im_end|>4<|im_end|>"
    served = TOKENIZER.chat(messages[:4], add_generation_prompt=True)
    assert item.tokens[: len(served)].tolist() == served
    assert item.loss[len(served) :].all()


@given(prompt=st.text(max_size=30), completion=st.text(max_size=30))
def test_any_prompt_and_completion_survive(prompt: str, completion: str) -> None:
    item = example({"prompt": prompt, "completion": completion})
    assert TOKENIZER.decode(item.tokens.tolist()) == prompt + completion + "<|endoftext|>"
    assert not item.loss[0]
    if prompt:
        assert learned(item) == completion + "<|endoftext|>"


def test_a_batch_of_records_gives_the_example_of_each() -> None:
    rows = [{"text": "a b"}, {"prompt": "x", "completion": ""}, {"text": "c"}]
    records = [parse_record(json.dumps(row).encode(), "f", TOKENIZER) for row in rows]
    for batched, row in zip(tokenize(records, TOKENIZER), rows, strict=True):
        alone = example(row)
        assert batched.tokens.tolist() == alone.tokens.tolist()
        assert batched.loss.tolist() == alone.loss.tolist()


@given(size=st.integers(2, 200), length=st.integers(1, 70))
def test_windows_learn_every_target_once_in_its_context(size: int, length: int) -> None:
    tokens = np.arange(size, dtype=np.int32)
    whole = Example(tokens, np.arange(size) > 0)
    windows = [window(whole, index, length) for index in range(window_count(whole, True, length))]
    assert all(1 <= part.rows <= length for part in windows)
    assert all(part.rows == length for part in windows[:-1])
    assert np.concatenate([part.tokens[part.loss] for part in windows]).tolist() == list(range(1, size))
    for part in windows:
        assert not part.loss[0]
        assert np.all(np.diff(part.tokens) == 1)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (8, 1), (9, 0)])
def test_what_does_not_split_is_kept_or_left_out(rows: int, count: int) -> None:
    item = Example(np.zeros(rows + 1, np.int32), np.arange(rows + 1) > 0)
    assert window_count(item, False, 8) == count


@pytest.mark.parametrize("splits", [True, False])
def test_nothing_to_learn_is_left_out(splits: bool) -> None:
    assert window_count(example({"text": ""}), splits, 8) == 0
    assert window_count(example({"prompt": "", "completion": ""}), splits, 8) == 0


USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected the field 'text', or 'prompt' and 'completion', or 'messages'"),
        ({"txt": "a"}, "expected the field 'text', or 'prompt' and 'completion', or 'messages'"),
        ({"text": ["a"]}, "field 'text' must be a string, got a list"),
        ({"text": "a", "id": 1}, "unknown field 'id' beside 'text'"),
        ({"text": "a", "prompt": "b"}, "unknown field 'prompt' beside 'text'"),
        ({"prompt": 3, "completion": "a"}, "field 'prompt' must be a string, got a number"),
        ({"prompt": "a"}, "field 'completion' is missing"),
        ({"prompt": "a", "completion": "b", "x": 1}, "unknown field 'x' beside 'completion' and 'prompt'"),
        ({"messages": "a"}, "field 'messages' must be a list of at least one message, got a string"),
        ({"messages": []}, "field 'messages' must be a list of at least one message"),
        ({"messages": [USER, "a"]}, "message 2 must be an object with 'role' and 'content', got a string"),
        ({"messages": [{"role": "user"}]}, "message 1: field 'content' is missing"),
        ({"messages": [{"role": "bot", "content": ""}]}, "message 1: field 'role' is 'bot'; it must be one of"),
        ({"messages": [{**USER, "name": "x"}, ASSISTANT]}, "message 1: unknown field 'name'"),
        ({"messages": [USER]}, "field 'messages' has no assistant turn with content"),
    ],
)
def test_wrong_lines_are_named(row: object, message: str) -> None:
    with pytest.raises(PefxError) as caught:
        example(row)
    assert str(caught.value).startswith("f: line 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_template_cannot_take_chats() -> None:
    bare = Tokenizer(TOKENIZER._backend, TOKENIZER.eos, None, "tokenizer.json")
    with pytest.raises(PefxError, match=r"^f: line 3: field 'messages': .*has no chat_template"):
        parse_record(json.dumps({"messages": [USER, ASSISTANT]}).encode(), "f: line 3", bare)
