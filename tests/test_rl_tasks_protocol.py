"""Problems and turns are values; what keeps the protocol is recognised."""

from pefx.config import TaskConfig
from pefx.rl.tasks.protocol import Judge, Problem, Task, Turn
from pefx.rl.tasks.table import make_task


def test_a_problem_is_told_by_its_prompt_unless_it_says_otherwise():
    assert Problem("calc 1+2\n").name == "calc 1+2\n"
    assert Problem("calc 2+1\n", identity="calc 1+2").name == "calc 1+2"


def test_a_turn_goes_on_until_it_says_that_it_is_done():
    assert Turn(False, "7\n") == Turn(done=False, observation="7\n", reward=0.0, parts={})


def test_tasks_keep_the_protocol_and_other_things_do_not():
    task = make_task(TaskConfig("arithmetic"))
    assert isinstance(task, Task)
    assert isinstance(task, Judge)
    assert not isinstance(Problem(""), Judge)
