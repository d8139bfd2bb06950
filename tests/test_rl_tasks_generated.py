"""Two sides that never meet, problems by number, rewards from closeness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import PLACES, Generated, place_of, split_of
from pefx.rl.tasks.kind import Kind, known, spoken
from pefx.rl.tasks.protocol import Problem, Turn


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("level", [1, 3])
def test_splits_never_share_a_problem_whatever_the_seed(name, level):
    tasks = [Generated(TaskConfig(name, level=level, seed=seed), TASKS[name]) for seed in range(4)]
    train: set[str] = set()
    heldout: set[str] = set()
    for index in range(100):
        train |= {task.problem(index, "train").name for task in tasks}
        heldout |= {task.problem(index, "heldout").name for task in tasks}
    assert not train & heldout
    assert len(heldout) > 3


@given(prompt=st.text())
def test_a_problem_is_on_one_side_by_its_content(prompt):
    problem = Problem(prompt)
    assert 0 <= place_of(problem) < PLACES
    assert split_of(problem) == split_of(Problem("another", {"x": 1}, identity=prompt) if prompt else problem)


def test_an_eighth_is_held_out():
    held = sum(split_of(Problem(str(number))) == "heldout" for number in range(8000))
    assert 900 < held < 1100


def test_a_problem_is_a_pure_function_of_seed_split_and_index():
    one, two = (Generated(TaskConfig("sorting", seed=3), TASKS["sorting"]) for _ in range(2))
    forward = [one.problem(index, "train") for index in range(20)]
    assert [two.problem(index, "train") for index in reversed(range(20))] == forward[::-1]
    other = Generated(TaskConfig("sorting", seed=4), TASKS["sorting"])
    assert [other.problem(index, "train") for index in range(20)] != forward


def test_the_same_sum_the_other_way_round_is_the_same_problem():
    task = Generated(TaskConfig("arithmetic", options=(("operation", "+"),)), TASKS["arithmetic"])
    train = {frozenset(task.problem(i, "train").prompt[5:-1].split("+")) for i in range(300)}
    assert not train & {frozenset(task.problem(i, "heldout").prompt[5:-1].split("+")) for i in range(300)}


@pytest.mark.parametrize(("partial", "reward"), [(None, 0.0), (0.0, 0.0), (0.5, 0.25), (1.0, 0.5)])
def test_a_wrong_answer_gets_its_part(partial, reward):
    task = Generated(TaskConfig("arithmetic", partial=partial), TASKS["arithmetic"])
    problem = Problem("calc 9+6\n", {"answer": "15"})
    assert task.step(problem, ["13\n"]) == Turn(True, reward=reward, parts={"exact": 0.0, "close": 0.5})
    assert task.step(problem, ["15\n"]) == Turn(True, reward=1.0, parts={"exact": 1.0, "close": 1.0})


def test_a_problem_without_end_is_over_after_its_turns():
    task = Generated(TaskConfig("lookup", turns=3), TASKS["lookup"])
    problem = task.problem(0, "train")
    calls = ["get abc\n"] * 3
    assert not task.step(problem, calls[:2]).done
    assert task.step(problem, calls) == Turn(True, parts={"exact": 0.0, "close": 0.0})


def test_options_that_leave_no_problem_are_an_error():
    kind = Kind(lambda random, level, options: Problem("the only one\n", {"answer": ""}), spoken, known)
    task = Generated(TaskConfig("narrow"), kind)
    side = split_of(Problem("the only one\n"))
    assert task.problem(0, side).prompt == "the only one\n"
    with pytest.raises(PefxError, match=r"task\.options: \{\} leave narrow no problem in the split"):
        task.problem(0, "train" if side == "heldout" else "heldout")
