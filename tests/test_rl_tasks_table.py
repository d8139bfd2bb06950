"""From configs to tasks: each rule, broken alone, is told with its field."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.jsonl import JsonlTask
from pefx.rl.tasks.table import make_task, task_rules

DOCS = Path(__file__).parents[1] / "docs" / "rl_tasks.md"
SORTING = TaskConfig("sorting", options=(("items", "letters"), ("order", "any")))
FILES = TaskConfig("jsonl", path="a.jsonl", heldout_path="b.jsonl", reward="m:f")


@pytest.mark.parametrize("config", [SORTING, FILES, *map(TaskConfig, TASKS), TaskConfig("lookup", 5, turns=6)])
def test_a_sound_config_breaks_nothing(config):
    assert list(task_rules(config)) == []


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        (TaskConfig("sort"), "name", "no task is called 'sort'; there are arithmetic, .*facts and jsonl"),
        (replace(SORTING, level=0), "level", "must be 1 to 5, got 0"),
        (replace(SORTING, level=6), "level", "must be 1 to 5, got 6"),
        (replace(SORTING, seed=-1), "seed", "must not be negative, got -1"),
        (replace(SORTING, partial=1.5), "partial", "must be from 0 to 1, got 1.5"),
        (replace(SORTING, partial=float("nan")), "partial", "must be from 0 to 1, got nan"),
        (replace(SORTING, turns=0), "turns", "must be at least 1 at level 1, got 0"),
        (TaskConfig("lookup", 5, turns=5), "turns", "must be at least 6 at level 5, got 5"),
        (replace(SORTING, timeout=0.0), "timeout", "must be above 0"),
        (replace(SORTING, timeout=float("inf")), "timeout", "must be above 0"),
        (replace(SORTING, memory_mb=0), "memory_mb", "must be above 0"),
        (replace(SORTING, path="a"), "path", "is of jsonl tasks; sorting draws and rewards its own problems"),
        (replace(SORTING, heldout_path="a"), "heldout_path", "is of jsonl tasks"),
        (replace(SORTING, reward="m:f"), "reward", "is of jsonl tasks"),
        (
            replace(SORTING, options=(("item", "x"),)),
            "options",
            "no option 'item'; its options: items, order",
        ),
        (TaskConfig("json", options=(("a", 1),)), "options", "no option 'a'; its options: none"),
        (
            replace(SORTING, options=(("items", "x"),)),
            "options",
            "'items' must be one of any, numbers, letters, got 'x'",
        ),
        (replace(SORTING, options=(("items", 3),)), "options", "'items' must be one of any, numbers, letters, got 3"),
        (TaskConfig("preference", options=(("user", "ann"),)), "options", "'user' must be 0 to 4294967295, got 'ann'"),
        (TaskConfig("arithmetic", options=(("digits", 10),)), "options", "'digits' must be 0 to 9, got 10"),
        (TaskConfig("arithmetic", options=(("digits", True),)), "options", "'digits' must be 0 to 9, got True"),
        (replace(FILES, path=None), "path", "is missing; a jsonl task needs a JSONL file"),
        (replace(FILES, reward=None), "reward", "is missing; a jsonl task needs a function, 'module:function'"),
        (replace(FILES, heldout_path=""), "heldout_path", "is empty; name a file, or None"),
        (replace(FILES, level=2), "level", "is of built-in tasks; leave it at 1 for jsonl"),
        (replace(FILES, options=(("a", 1),)), "options", r"is of built-in tasks; leave it at \(\) for jsonl"),
        (replace(FILES, partial=0.5), "partial", "is of built-in tasks; leave it at None for jsonl"),
    ],
)
def test_a_rule(config, field, message):
    assert [name for name, _ in task_rules(config)] == [field]
    with pytest.raises(PefxError, match=rf"^task\.{field}: .*{message}"):
        make_task(config)


def test_an_option_given_twice_is_told_for_each():
    config = TaskConfig("sorting", options=(("order", "up"), ("order", "down")))
    assert list(task_rules(config)) == [("options", "'order' is given twice")] * 2


def test_a_config_becomes_its_task(tmp_path, monkeypatch):
    for name in TASKS:
        task = make_task(TaskConfig(name, 2, 3))
        assert isinstance(task, Generated)
        assert task.config == TaskConfig(name, 2, 3)
    assert not make_task(TaskConfig("programs")).trusted
    (tmp_path / "table_rewards.py").write_text("def f(prompt, completion, fields): return 0\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    assert isinstance(make_task(TaskConfig("jsonl", path="a.jsonl", reward="table_rewards:f")), JsonlTask)


@pytest.mark.parametrize("name", TASKS)
def test_the_page_shows_the_first_problem_of_every_task_and_all_options(name):
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    task = make_task(TaskConfig(name))
    problem = task.problem(0, "train")
    assert f"| `{problem.prompt.strip()}` | `{(task.answer(problem) or '').strip()}` |" in rows[0]
    assert all(f"`{option}`" in rows[0] for option in TASKS[name].options)
