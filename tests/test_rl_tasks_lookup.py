"""Calls are answered, other completions end the problem; values are known to the tool alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.lookup import KIND, step
from pefx.rl.tasks.protocol import Problem, Turn

PROBLEM = Problem("find abc+xyz\n", {"values": {"abc": 12, "xyz": 30}})


def test_a_call_gets_its_value_and_the_sum_is_right():
    assert step(PROBLEM, ["get abc\n"]) == Turn(False, "12\n")
    assert step(PROBLEM, ["get abc\n", "get xyz\n"]) == Turn(False, "30\n")
    assert step(PROBLEM, ["get abc\n", "get xyz\n", "42\n"]) == Turn(True, reward=1.0, parts={"found": 1.0})


@pytest.mark.parametrize("call", ["get ", "get nil\n", "get abc \n", "get  abc"])
def test_a_call_for_nothing_gets_nothing(call):
    assert step(PROBLEM, [call]) == Turn(False, "none\n")


@pytest.mark.parametrize(("said", "close"), [("41", 0.5), ("", 0), ("abc", 0), ("42 ", 2 / 3), ("get", 0)])
def test_any_other_completion_is_an_answer(said, close):
    turn = step(PROBLEM, ["get abc\n", said])
    assert (turn.done, turn.reward) == (True, pytest.approx(close))
    assert turn.parts == {"found": 0.5}


@given(index=st.integers(0, 10**6), level=st.integers(1, 5))
def test_the_prompt_names_what_the_tool_knows_and_no_values(index, level):
    problem = Generated(TaskConfig("lookup", level=level), KIND).problem(index, "train")
    names = problem.prompt.removeprefix("find ").strip().split("+")
    assert names == list(problem.data["values"])
    assert len(set(names)) == level
    assert not any(letter.isdigit() for letter in problem.prompt)
