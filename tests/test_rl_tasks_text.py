"""Text of all tasks, right as often as asked, without any problem that is held out."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from typing import cast

import pytest

from pefx.config import TaskConfig
from pefx.data.jsonl import read_texts
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.rl.tasks import text
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.kind import Kind, known, spoken
from pefx.rl.tasks.protocol import END, Problem
from pefx.rl.tasks.table import make_task
from pefx.rl.tasks.text import build, examples, lines, wrong
from pefx.training.windows import Windows

TOKENIZER = Path(__file__).parents[1] / "assets" / "base"
LEVELS = (1, 2, 3)


def test_it_is_a_pure_function_of_its_arguments():
    assert list(lines(3, 50, 0.5)) == list(lines(3, 50, 0.5)) != list(lines(4, 50, 0.5))
    assert list(lines(3, 50, 1.0))[:40] != list(lines(3, 50, 1.0, exam=True))[:40]


def test_every_task_is_there_and_every_line_ends():
    words = Counter(line.split()[0] for line in lines(0, 600, 0.5, LEVELS))
    assert {"calc", "make", "sort", "json", "code", "say", "find", "reverse", "replace"} <= words.keys()
    assert all(line.endswith(END) and not line.startswith(END) for line in lines(0, 500, 0.5, LEVELS))
    assert {line.split()[0] for line in lines(0, 50, 0.5, tasks=("countdown",))} == {"make"}


@pytest.mark.parametrize("exam", [False, True])
def test_no_held_out_problem_is_in_it(exam):
    prompts = {line.split(END)[0] + END for line in lines(0, 600, 0.5, LEVELS, exam, contexts=0.0)}
    prompts |= {line.split(END)[1] + END for line in lines(0, 300, 0.5, LEVELS, exam, contexts=1.0)}
    for name in TASKS:
        for level in LEVELS:
            task = make_task(TaskConfig(name, level))
            assert not prompts & {task.problem(index, "heldout").prompt for index in range(30)}
    assert prompts & {make_task(TaskConfig("preference")).problem(index, "train").prompt for index in range(300)}


def test_the_exam_has_problems_of_its_own():
    train = {line.split(END)[0] for line in lines(0, 1500, 1.0, contexts=0.0)}
    assert not train & {line.split(END)[0] for line in lines(0, 150, 1.0, exam=True, contexts=0.0)}


def test_as_many_lines_as_asked_begin_with_a_context_and_are_right():
    told = list(islice(examples(0, 0.0, (1, 2), False, tuple(TASKS), 0.25), 800))
    assert sum(is_right for _, is_right in told) / 800 == pytest.approx(0.25, abs=0.05)
    for line, is_right in told:
        if is_right:
            context, prompt, said, _ = line.split(END)
            assert said in context
            assert prompt not in context
    assert not any(is_right for _, is_right in islice(examples(0, 0.0, (1,), False, ("json",), 1.0), 50))


@pytest.mark.parametrize("right", [0.0, 0.25, 1.0])
def test_it_is_right_as_often_as_asked(right):
    told = list(islice(examples(0, right, (1, 2), False, ("arithmetic",)), 800))
    assert sum(is_right for _, is_right in told) / 800 == pytest.approx(right, abs=0.05)
    for line, is_right in told:
        prompt, said, _ = line.split(END)
        assert (said == str(eval(prompt.removeprefix("calc ")))) == is_right


def test_several_turns_are_told_with_what_the_tool_gives():
    for line in lines(0, 50, 1.0, tasks=("lookup",)):
        asked, call, given, said, end = line.split(END)
        assert call == "get " + asked.removeprefix("find ")
        assert said == given != ""
        assert end == ""
    assert {line.count(END) for line in lines(0, 5, 1.0, (3,), tasks=("lookup",))} == {8}


@pytest.mark.parametrize("right", ["a\n", "aa\n", "0\n", "3*5+9\n", '{"who":"ann","age":31}\n'])
def test_a_wrong_completion_is_another_one(right):
    for seed in range(200):
        said = wrong(Random(seed), right, right if seed % 2 else "7\n")
        assert said != right
        assert said.endswith(END)
        assert said.count(END) == 1


def test_files_are_what_pretraining_reads(tmp_path):
    assert build(tmp_path / "out", count=1000) == {"train.jsonl": 1000, "heldout.jsonl": 20}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["heldout.jsonl", "train.jsonl"]
    train = list(read_texts(tmp_path / "out" / "train.jsonl"))
    assert train == list(lines(0, 1000, 0.5, (1, 2)))
    tokenizer = Tokenizer.load(TOKENIZER)
    windows = Windows(str(tmp_path / "out" / "train.jsonl"), tokenizer, 64)
    assert tokenizer.decode(windows[0].tolist()).startswith(train[0] + tokenizer.decode([tokenizer.eos]))


def test_a_prompt_has_its_own_tokens_whatever_follows():
    tokenizer = Tokenizer.load(TOKENIZER)
    for name in TASKS:
        task = make_task(TaskConfig(name))
        for index in range(30):
            problem = task.problem(index, "train")
            answer = task.answer(problem) or ""
            assert tokenizer.encode(problem.prompt + answer) == [
                *tokenizer.encode(problem.prompt),
                *tokenizer.encode(answer),
            ]


def test_a_task_without_problems_for_a_file_is_an_error(monkeypatch):
    only = Kind(lambda random, level, options: Problem("the only one\n", {"answer": "a"}), spoken, known)
    monkeypatch.setitem(cast(dict, TASKS), "narrow", only)
    with pytest.raises(PefxError, match="narrow has too few problems at level 2: none for one of the two files"):
        list(lines(0, 1, 1.0, (2,), exam=True, tasks=("narrow",)))


def test_the_command_refuses_what_makes_no_sense(tmp_path, capsys):
    for count, right in ((0, 0.5), (5, 1.5)):
        with pytest.raises(PefxError, match="count must be above 0 and right from 0 to 1"):
            text.main(tmp_path, count, right)
    text.main(tmp_path, 20, 1.0, (1,))
    assert "20 lines" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])) == 1
