"""What every built-in task keeps: right answers get 1, sizes stay small, nothing depends on anything but the config."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import TaskConfig
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.kind import LEVELS
from pefx.rl.tasks.protocol import END, Problem, Turn

ROOT = Path(__file__).parents[1]
# Problem 0 of seed 0: another Python, or a change of a task, must not change what a seed means.
FIRST = {
    "arithmetic": ("calc 9*6\n", "54\n"),
    "countdown": ("make 18 from 9 9\n", "9+9\n"),
    "edits": ("replace v m in mesv\n", "mesm\n"),
    "sorting": ("sort l p a o\n", "a l o p\n"),
    "json": ("json 21 is bob\n", '{"who":"bob","age":21}\n'),
    "programs": ("code 4:2 18:-12 2:4\n", "6-x\n"),
    "preference": ("say worm\n", "WORM SO WOW\n"),
    "lookup": ("find nxj\n", "get nxj\n"),
    "facts": ("kay mug?\n", "white\n"),
}


def task_of(name: str, **changes) -> Generated:
    return Generated(replace(TaskConfig(name), **changes), TASKS[name])


def play(task: Generated, problem: Problem) -> tuple[list[str], Turn]:
    """Answers right until the problem is over."""
    texts: list[str] = []
    while True:
        texts.append(task.answer(problem, texts))
        turn = task.step(problem, texts)
        if turn.done:
            return texts, turn


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_means_the_same_everywhere(name):
    task = task_of(name)
    problem = task.problem(0, "train")
    assert (problem.prompt, task.answer(problem)) == FIRST[name]


def test_problems_do_not_depend_on_the_process():
    code = (
        "from pefx.config import TaskConfig; from pefx.rl.tasks.builtin import TASKS;"
        "from pefx.rl.tasks.generated import Generated; import json;"
        "print(json.dumps([Generated(TaskConfig(n, 3, 7), TASKS[n]).problem(5, 'heldout').prompt for n in TASKS]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == [task_of(n, level=3, seed=7).problem(5, "heldout").prompt for n in TASKS]


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("name", TASKS)
def test_right_answers_get_one_and_data_is_json(name, level):
    task = task_of(name, level=level)
    for index in range(40 if task.trusted else 2):
        problem = task.problem(index, "train" if index % 2 else "heldout")
        data = json.loads(json.dumps(dict(problem.data)))
        texts, turn = play(task, Problem(problem.prompt, data))
        assert turn.reward == turn.parts["exact"] == turn.parts["close"] == 1.0
        assert len(texts) == TASKS[name].turns(level)
        assert problem.prompt.endswith(END)
        assert problem.prompt.count(END) == 1
        assert all(text.endswith(END) and text.count(END) == 1 and len(text) > 1 for text in texts)


@pytest.mark.parametrize("name", TASKS)
def test_problems_of_level_one_are_short(name):
    task = task_of(name)
    for index in range(300):
        problem = task.problem(index, "train")
        assert len(problem.prompt) <= 48
        assert len(task.answer(problem)) <= 24


@pytest.mark.parametrize("name", TASKS)
def test_levels_are_harder(name):
    easy, hard = ([task_of(name, level=level).problem(index, "train") for index in range(60)] for level in (1, LEVELS))
    lengths = [sum(len(str(problem.data) + problem.context) for problem in own) for own in (easy, hard)]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("said", ["", "\n", "\x00\n", "🙂", "\ud800", "9" * 5000, "(" * 5000, "[" * 10**5, "get "])
def test_no_completion_makes_a_task_fail(name, said):
    task = task_of(name, turns=1) if name != "lookup" else task_of(name)
    turn = task.step(task.problem(0, "train"), [said])
    assert 0 <= turn.reward < 1
    assert not turn.done or {"exact", "close"} <= turn.parts.keys()
