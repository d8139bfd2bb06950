"""Objects are compared field by field, by value and by type; nothing passes for what it is not."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.rl.tasks.extraction import KIND, step
from pefx.rl.tasks.protocol import Problem

ONE = Problem("json ann is 31\n", {"wanted": {"who": "ann", "age": 31}})
TWO = Problem("json ...\n", {"wanted": [{"who": "ann", "age": 31}, {"who": "bob", "age": 5}]})


@pytest.mark.parametrize(
    ("said", "close"),
    [
        ('{"who":"ann","age":31}', 1),
        (' {"age": 31, "who": "ann"}\nmore', 1),
        ('{"who":"ann","age":13}', 1 / 2),
        ('{"who":"ann","age":"31"}', 1 / 2),
        ('{"who":"ann","age":31.0}', 1 / 2),
        ('{"who":"ann"}', 1 / 2),
        ('{"who":"ann","age":31,"at":"rome"}', 2 / 3),
        ('{"who":"ann","age":31,"age":31}', 0),
        ('[{"who":"ann","age":31}]', 0),
        ("{}", 0),
        ("31", 0),
        ("null", 0),
        ('{"who":"ann","age":31', 0),
        ('{"who":"ann","age":NaN}', 1 / 2),
        ("[" * 100_000, 0),
    ],
)
def test_one_object(said, close):
    assert step(ONE, [said]).reward == pytest.approx(close)


@pytest.mark.parametrize(
    ("said", "close"),
    [
        ('[{"who":"ann","age":31},{"who":"bob","age":5}]', 1),
        ('[{"who":"bob","age":5},{"who":"ann","age":31}]', 0),
        ('[{"who":"ann","age":31}]', 1 / 2),
        ('{"who":"ann","age":31}', 0),
        ('[1,{"who":"bob","age":5}]', 2 / 5),
        ("[]", 0),
    ],
)
def test_several_objects(said, close):
    assert step(TWO, [said]).reward == pytest.approx(close)


def test_true_is_not_one():
    assert step(Problem("", {"wanted": {"age": 1}}), ['{"age":true}']).reward == 0


@given(
    index=st.integers(0, 10**6), level=st.integers(1, 5), place=st.integers(0, 999), letter=st.sampled_from('0a"{,: ]')
)
def test_a_changed_answer_is_right_only_if_it_says_the_same(index, level, place, letter):
    problem = KIND.draw(Random(index), level, {})
    right = KIND.answer(problem, [])
    assert step(problem, [right]).reward == 1.0
    place %= len(right) - 1
    said = right[:place] + letter + right[place + 1 :]
    try:
        same = json.loads(said) == problem.data["wanted"]
    except ValueError:
        same = False
    assert (step(problem, [said]).reward == 1.0) == same


@given(index=st.integers(0, 10**6), level=st.integers(1, 5))
def test_the_text_says_every_value(index, level):
    problem = KIND.draw(Random(index), level, {})
    wanted = problem.data["wanted"]
    for row in wanted if isinstance(wanted, list) else [wanted]:
        assert all(str(value) in problem.prompt for value in row.values())
