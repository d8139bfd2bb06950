"""Prompts from files: every line once before any again, sides apart, and a message for each thing that is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.rewards import Rewards
from pefx.rl.tasks import jsonl
from pefx.rl.tasks.jsonl import JsonlTask
from pefx.rl.tasks.protocol import Problem, Turn

REWARD = """
def exact(prompt, completion, fields):
    return {"reward": completion == fields["answer"], "short": len(completion) < 3}
def two(prompt, completion): return 1
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    (tmp_path / "jsonl_rewards.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", [{"prompt": f"p{i}", "answer": f"a{i}", "k": [i, None]} for i in range(60)])
    return TaskConfig("jsonl", path="a.jsonl", reward="jsonl_rewards:exact", timeout=20.0)


def write(path: str, rows: list) -> None:
    Path(path).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files alone: the function is not looked at."""
    monkeypatch.setattr(jsonl, "check_reward", lambda name, seconds: None)


@pytest.mark.usefixtures("unchecked")
def test_every_line_is_seen_once_an_epoch_in_an_order_of_the_seed(config):
    task, again, other = JsonlTask(config), JsonlTask(config), JsonlTask(replace(config, seed=1))
    held = {task.problem(index, "heldout").prompt for index in range(60)}
    count = 60 - len(held)
    assert 0 < len(held) < 20
    epochs = [[task.problem(epoch * count + i, "train").prompt for i in range(count)] for epoch in range(2)]
    assert all(sorted(epoch) == sorted({f"p{i}" for i in range(60)} - held) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [again.problem(i, "train").prompt for i in reversed(range(count))] == epochs[0][::-1]
    assert [other.problem(i, "train").prompt for i in range(count)] != epochs[0]


@pytest.mark.usefixtures("unchecked")
def test_lines_with_one_prompt_are_on_one_side(config):
    write("a.jsonl", [{"prompt": f"p{i % 30}", "n": i} for i in range(90)])
    task = JsonlTask(config)
    train, heldout = (
        {task.problem(i, "train").prompt for i in range(90)},
        {task.problem(i, "heldout").prompt for i in range(90)},
    )
    assert not train & heldout
    assert train | heldout == {f"p{i}" for i in range(30)}


@pytest.mark.usefixtures("unchecked")
def test_held_out_lines_may_have_a_file_of_their_own(config):
    write("b.jsonl", [{"prompt": "q0"}, {"prompt": "q1"}])
    task = JsonlTask(replace(config, heldout_path="b.jsonl"))
    assert {task.problem(i, "heldout").prompt for i in range(2)} == {"q0", "q1"}
    assert len({task.problem(i, "train").prompt for i in range(60)}) == 60
    write("b.jsonl", [{"prompt": "q0"}, {"prompt": "p7"}])
    with pytest.raises(PefxError, match=r"b\.jsonl: line 2: this prompt is also in a\.jsonl: line 8"):
        JsonlTask(replace(config, heldout_path="b.jsonl"))


def test_fields_reach_the_function(config):
    task = JsonlTask(config)
    problem = task.problem(0, "train")
    assert set(problem.data) == {"answer", "k"}
    assert task.answer(problem) == problem.data["answer"]
    assert task.answer(Problem("p")) is None
    with Rewards(workers=1) as pool:
        pool.submit(0, task, problem, [problem.data["answer"]])
        assert pool.collect(wait=True) == [(0, Turn(True, reward=1.0, parts={"short": 1.0}))]


def test_step_calls_the_function_here_where_nothing_bounds_it(config, monkeypatch):
    monkeypatch.syspath_prepend(".")
    assert JsonlTask(config).step(Problem("p", {"answer": "abc"}), ["abc"]) == Turn(
        True, reward=1.0, parts={"short": 0.0}
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"text": "b"}], r"a\.jsonl: line 2: field 'prompt' is missing"),
        ([{"prompt": 3}], r"a\.jsonl: line 1: field 'prompt' must be a string, got a number"),
        ([{"prompt": ""}], r"a\.jsonl: line 1: field 'prompt' is empty"),
        ([{"prompt": "a", "answer": 3}], r"a\.jsonl: line 1: field 'answer' must be a string .*, got a number"),
        (["", '{"prompt": '], r"a\.jsonl: line 2: broken JSON"),
        (["[]"], r"a\.jsonl: line 1: expected a JSON object, got a list"),
        ([], r"a\.jsonl: the file is empty"),
        ([{"prompt": "a"}], r"a\.jsonl: too few lines, none is in the split '\w+' .*give more, or task\.heldout_path"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_file_that_is_wrong(config, rows, message):
    write("a.jsonl", rows)
    with pytest.raises(PefxError, match=message):
        JsonlTask(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "none.jsonl"}, r"none\.jsonl: no such file"),
        ({"heldout_path": "none.jsonl"}, r"none\.jsonl: no such file"),
        ({"reward": "jsonl_rewards:gone"}, "task.reward: gone is not there in jsonl_rewards"),
        ({"reward": "nowhere:f"}, "task.reward: module nowhere cannot be imported"),
        (
            {"reward": "jsonl_rewards:two"},
            r"two takes \(prompt, completion\), but is called as",
        ),
    ],
)
def test_a_config_that_is_wrong(config, changes, message):
    with pytest.raises(PefxError, match=message):
        JsonlTask(replace(config, **changes))
