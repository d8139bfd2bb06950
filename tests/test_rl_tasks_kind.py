"""How close an answer is: 1 for the right one alone."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.rl.tasks.kind import ANY, chosen, closeness, line_of, spoken
from pefx.rl.tasks.protocol import Problem


@given(said=st.text(max_size=8), right=st.text(min_size=1, max_size=8))
def test_only_equal_texts_are_as_close_as_can_be(said, right):
    assert 0 <= closeness(said, right) <= 1
    assert (closeness(said, right) == 1) == (said == right)


@pytest.mark.parametrize(
    ("said", "right", "close"), [("12", "12", 1), ("13", "12", 0.5), ("", "12", 0), ("123", "12", 2 / 3), ("", "", 1)]
)
def test_closeness_counts_places(said, right, close):
    assert closeness(said, right) == pytest.approx(close)


def test_a_line_is_what_comes_before_the_end_mark_of_the_last_text():
    assert line_of(["a\n", "b\nc\n"]) == "b"
    assert line_of(["b"]) == "b"
    assert spoken(Problem("", {"answer": "b"}), ["b\nanything"]).reward == 1.0


def test_an_option_is_itself_or_drawn():
    random = Random(0)
    assert chosen(random, "up", ("up", "down")) == "up"
    assert {chosen(random, ANY, ("up", "down")) for _ in range(20)} == {"up", "down"}
