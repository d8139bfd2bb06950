"""Sums, differences and products are right, and only the right number is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.rl.tasks.arithmetic import KIND, OPERATIONS
from pefx.rl.tasks.generated import Generated


@given(index=st.integers(0, 10**6), level=st.integers(1, 5), said=st.text("0123456789- +", max_size=8))
def test_only_the_right_number_gets_one(index, level, said):
    task = Generated(TaskConfig("arithmetic", level=level), KIND)
    problem = task.problem(index, "train")
    right = str(eval(problem.prompt.removeprefix("calc ")))
    assert problem.data["answer"] == right
    assert task.step(problem, [right + "\n"]).reward == 1.0
    assert task.step(problem, [said]).reward == float(said == right)


@pytest.mark.parametrize("sign", OPERATIONS)
def test_options_choose_the_operation_and_the_digits(sign):
    task = Generated(TaskConfig("arithmetic", options=(("operation", sign), ("digits", 3))), KIND)
    prompts = [task.problem(index, "train").prompt for index in range(50)]
    assert all(sign in prompt for prompt in prompts)
    numbers = [int(number) for prompt in prompts for number in prompt[5:-1].split(sign)]
    assert 100 <= max(numbers) < 1000
