"""pefx.serving.shaping: penalties count what their papers say, per sequence."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.requests import Request
from pefx.serving.shaping import Shaper, needs_shaping


def shaper(prompt: list[int], drawn: list[int], **asked: Any) -> Shaper:
    made = Shaper(Request("a", "x", **asked), prompt, None)
    for token in drawn:
        made.push(token)
    return made


def test_what_asks_for_nothing_needs_none():
    assert not needs_shaping(Request("a", "x", temperature=0.3, top_k=4, stop=("b",), n=3))
    asks: list[dict[str, Any]] = [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": ((3, 1.0),)},
        {"regex": "a"},
        {"json_schema": "{}"},
    ]
    for asked in asks:
        assert needs_shaping(Request("a", "x", **asked))


def test_repetition_counts_prompt_and_answer_once_the_others_the_answer_alone():
    made = shaper([1, 1, 2], [2, 3, 3], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    assert {token: (repeat, add) for token, repeat, add in made.entries()} == {
        1: (2.0, 0.0),
        2: (2.0, -0.75),
        3: (2.0, -1.0),
    }


def test_a_bias_stands_beside_penalties():
    made = shaper([1], [4], presence_penalty=1.0, logit_bias=((4, 3.0), (5, -100.0)))
    assert sorted(made.entries()) == [(4, 1.0, 2.0), (5, 1.0, -100.0)]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.floats(-2, 2), st.floats(-2, 2))
def test_a_token_is_named_once(prompt, drawn, presence, frequency):
    made = shaper(prompt, drawn, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=1.5)
    tokens = [token for token, _, _ in made.entries()]
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) == set(prompt) | set(drawn)
    for token, _, add in made.entries():
        count = drawn.count(token)
        assert add == pytest.approx(-presence * (count > 0) - frequency * count)


class Counting:
    """A form of two tokens."""

    def __init__(self):
        self.left = 2

    def mask(self) -> np.ndarray:
        return np.array([self.left], np.uint32)

    def push(self, token: int) -> None:
        self.left -= 1

    @property
    def over(self) -> bool:
        return self.left == 0


def test_a_form_is_followed_token_by_token():
    made = Shaper(Request("a", "x", regex="ab"), [], Counting())
    assert shaper([], []).mask is None
    for left in (2, 1):
        assert not made.over
        mask = made.mask
        assert mask is not None
        assert mask[0] == left
        made.push(7)
    assert made.over
    assert made.entries() == []
