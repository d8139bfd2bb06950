"""Rewards that misbehave in every way there is: each is an error of its own, and the others get what is theirs."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl import rewards
from pefx.rl.rewards import RewardError, Rewards, check_reward
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.jsonl import JsonlTask
from pefx.rl.tasks.protocol import Problem, Turn

MODULE = """
import os, sys, time
def good(prompt, completion, fields): return completion == fields["answer"]
def hangs(prompt, completion, fields): time.sleep(600)
def spins(prompt, completion, fields):
    while True: pass
def raises(prompt, completion, fields): raise KeyError("gone")
def leaves(prompt, completion, fields): sys.exit(3)
def nan(prompt, completion, fields): return float("nan")
def infinite(prompt, completion, fields): return {"reward": 1.0, "part": float("inf")}
def text(prompt, completion, fields): return "1.0"
def exits(prompt, completion, fields): os._exit(0)
def aborts(prompt, completion, fields): os.abort()
def murders(prompt, completion, fields): os.kill(os.getppid(), 9); time.sleep(600)
def murders_once(prompt, completion, fields):
    if not os.path.exists("done"):
        open("done", "w").close()
        murders(prompt, completion, fields)
    return 1.0
def prints(prompt, completion, fields):
    for _ in range(1024): print("x" * (1 << 20))
def eats(prompt, completion, fields):
    kept = []
    while True: kept.append(bytearray(1 << 22))
def forks(prompt, completion, fields):
    for _ in range(5): os.fork()
    time.sleep(600)
"""
EXPECTED = {
    "hangs": "timeout",
    "spins": "timeout",
    "forks": "timeout",
    "raises": "raised",
    "leaves": "raised",
    "nan": "not_a_number",
    "infinite": "not_a_number",
    "text": "not_a_number",
    "exits": "died",
    "aborts": "died",
    "murders": "died",
    "prints": "too_much_output",
    "eats": "too_much_memory",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    (tmp_path / "bad_rewards.py").write_text(MODULE)
    (tmp_path / "hanging_module.py").write_text("import time; time.sleep(600)\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{i}", "answer": f"a{i}"}) + "\n" for i in range(50))
    )
    monkeypatch.chdir(tmp_path)
    return TaskConfig("jsonl", path="a.jsonl", reward="bad_rewards:good", timeout=20.0, memory_mb=64)


def collect_all(pool: Rewards) -> dict:
    found = {}
    while some := pool.collect(wait=True):
        found |= dict(some)
    return found


def test_each_way_to_misbehave_is_told_and_others_get_their_rewards(config):
    good = JsonlTask(config)
    with Rewards(workers=2) as pool:
        for index, (name, kind) in enumerate(EXPECTED.items()):
            task = JsonlTask(replace(config, reward=f"bad_rewards:{name}", timeout=0.5 if kind == "timeout" else 20.0))
            problem = task.problem(0, "train")
            pool.submit(name, task, problem, ["x"])
            problem = good.problem(index, "train")
            pool.submit(("right", index), good, problem, [good.answer(problem) or ""])
            pool.submit(("wrong", index), good, problem, ["x"])
        found = collect_all(pool)
    assert {name: found[name].kind for name in EXPECTED} == EXPECTED
    assert all(isinstance(found[name], RewardError) and found[name].message for name in EXPECTED)
    for index in range(len(EXPECTED)):
        assert found["right", index] == Turn(True, reward=1.0)
        assert found["wrong", index] == Turn(True, reward=0.0)
    assert pool.counts == Counter(EXPECTED.values())
    assert found["raises"].message == "KeyError: 'gone' (bad_rewards.py:7)"
    assert found["hangs"].message == "still running after 0.5 s"


def test_trusted_tasks_are_evaluated_here_and_start_nothing(monkeypatch):
    monkeypatch.setattr(rewards, "Worker", None)
    task = Generated(TaskConfig("arithmetic"), TASKS["arithmetic"])
    with Rewards() as pool:
        problem = task.problem(0, "train")
        pool.submit(1, task, problem, [task.answer(problem)])
        pool.submit(2, task, Problem("no answer in here"), ["x"])
        (one, right), (two, error) = pool.collect(wait=False)
        assert (one, right.reward, two) == (1, 1.0, 2)  # pyright: ignore[reportAttributeAccessIssue]
        assert error == RewardError("raised", "KeyError: 'answer'")
        assert pool.collect(wait=True) == []


def test_programs_run_in_workers():
    task = Generated(TaskConfig("programs", timeout=30.0), TASKS["programs"])
    with Rewards(workers=1) as pool:
        for index in range(3):
            problem = task.problem(index, "train")
            pool.submit(index, task, problem, [task.answer(problem)])
        pool.submit("hostile", task, task.problem(0, "train"), ["__import__('os').kill(0, 9)\n"])
        found = collect_all(pool)
    assert [found[index].reward for index in range(3)] == [1.0, 1.0, 1.0]
    assert found["hostile"].reward == 0.0
    assert not pool.counts


def test_tasks_take_turns(config):
    slow, quick = (JsonlTask(replace(config, reward=f"bad_rewards:{name}", timeout=0.3)) for name in ("hangs", "nan"))
    with Rewards(workers=1) as pool:
        for index in range(4):
            pool.submit(("slow", index), slow, slow.problem(0, "train"), ["x"])
        for index in range(2):
            pool.submit(("quick", index), quick, quick.problem(0, "train"), ["x"])
        order = []
        while some := pool.collect(wait=True):
            order += [key for key, _ in some]
    assert order.index(("quick", 1)) < order.index(("slow", 3))
    assert [index for name, index in order if name == "slow"] == [0, 1, 2, 3]


def test_it_ends_at_once_whatever_is_still_running(config):
    task = JsonlTask(replace(config, reward="bad_rewards:hangs", timeout=300.0))
    with Rewards(workers=2) as pool:
        for index in range(5):
            pool.submit(index, task, task.problem(0, "train"), ["x"])
        assert pool.collect(wait=False) == []
        time.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    pool.close()


def test_a_worker_that_says_nothing_is_replaced(config, monkeypatch):
    monkeypatch.setattr(rewards, "GRACE_SECONDS", 0.7)
    monkeypatch.setattr(rewards, "END_SECONDS", 0.1)
    with pytest.raises(PefxError, match="module of 'hanging_module:f' went wrong: timeout, the worker said"):
        check_reward("hanging_module:f", 0.1)


def test_a_job_whose_worker_was_lost_is_tried_once_more(config):
    task = JsonlTask(replace(config, reward="bad_rewards:murders_once"))
    with Rewards(workers=1) as pool:
        pool.submit(0, task, task.problem(0, "train"), ["x"])
        assert pool.collect(wait=True) == [(0, Turn(True, reward=1.0))]


def test_data_that_json_cannot_hold_is_that_evaluations_error(config):
    task = JsonlTask(config)
    with Rewards(workers=1) as pool:
        pool.submit("odd", task, Problem("p", {"answer": {1, 2}}), ["x"])
        pool.submit("nan", task, Problem("p", {"answer": float("nan")}), ["x"])
        pool.submit("good", task, Problem("p", {"answer": "\ud800 é"}), ["\ud800 é"])
        found = collect_all(pool)
    assert found["odd"].kind == found["nan"].kind == "died"
    assert found["good"] == Turn(True, reward=1.0)
