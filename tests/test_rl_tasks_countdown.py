"""Answers are parsed, never run; they are right if they reach the target with the given numbers, each once."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.rl.tasks.countdown import KIND, combined, evaluate, step
from pefx.rl.tasks.kind import line_of
from pefx.rl.tasks.protocol import Problem

NUMBERS = st.lists(st.integers(1, 99), min_size=2, max_size=6)


@given(numbers=NUMBERS, seed=st.integers(0, 1000))
def test_an_expression_that_was_made_has_its_value_and_uses_every_number_once(numbers, seed):
    text, value = combined(Random(seed), numbers)
    assert evaluate(text) == (value, Counter(numbers))
    assert eval(text) == value


@given(text=st.text("0123456789+-*() ", max_size=12))
def test_what_can_be_evaluated_has_the_value_that_python_gives(text):
    found = evaluate(text)
    if found is not None:
        assert found[0] == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    ["", "3+", "3**4", "3/4", "3//4", "-3", "+3", "3(4)", "0x5", "1_0", "3.0", "a", "3+4 #", "3,4", "(3", "05", "3+\n4",
     "__import__('os')", "(" * 101, "1+" * 60 + "1", "²", "3 if 4 else 5"],
)  # fmt: skip
def test_all_else_has_no_value(text):
    assert evaluate(text) is None


PROBLEM = Problem("make 24 from 3 5 9\n", {"numbers": [3, 5, 9], "target": 24, "answer": "3*5+9"})


@pytest.mark.parametrize(
    ("said", "close"),
    [("3*5+9", 1), (" 9 + 5*3 ", 1), ("(3*5)+9\nmore", 1), ("3*9", 1 / 4), ("3*5+8", 0), ("3*3*3-3", 0), ("24", 0)],
)  # fmt: skip
def test_rules(said, close):
    turn = step(PROBLEM, [said])
    assert turn.reward == pytest.approx(close)
    assert turn.parts["allowed"] == float(close > 0)


@given(
    index=st.integers(0, 10**6),
    level=st.integers(1, 5),
    place=st.integers(0, 99),
    letter=st.sampled_from("0123456789+-*"),
)
def test_a_changed_answer_is_right_only_if_it_is_right(index, level, place, letter):
    problem = KIND.draw(Random(index), level, {})
    right = line_of([KIND.answer(problem, [])])
    assert step(problem, [right]).reward == 1.0
    said = right[: place % len(right)] + letter + right[place % len(right) + 1 :]
    found = evaluate(said)
    is_right = found is not None and found[0] == problem.data["target"] and found[1] <= Counter(problem.data["numbers"])
    assert (step(problem, [said]).reward == 1.0) == is_right


def test_the_target_takes_a_calculation():
    for index in range(300):
        problem = KIND.draw(Random(index), 1 + index % 5, {})
        assert problem.data["target"] not in problem.data["numbers"]
        assert 0 < problem.data["target"] < 1000
