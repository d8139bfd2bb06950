"""A worker answers jobs by lines; each is evaluated in a fork that ends with all that it started."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pefx.config import TaskConfig
from pefx.rl import reward_worker
from pefx.rl.reward_worker import config_of, judge_of
from pefx.rl.tasks.generated import Generated

ROOT = str(Path(reward_worker.__file__).parents[2])
MODULE = """
import os, sys, time
print("at import"); sys.stdin.read()
seen = []
def state(prompt, completion, fields):
    seen.append(1)
    return len(seen)
def talks(prompt, completion, fields):
    print("{}", flush=True); os.write(1, b"{}\\n"); input() if fields["reads"] else None
    return 1.0
def family(prompt, completion, fields):
    for leaves in (False, True):
        if os.fork() == 0:
            if leaves:
                os.setsid()
            for _ in range(3):
                os.fork()
            open(f"{fields['folder']}/{os.getpid()}", "w").close()
            time.sleep(60)
            os._exit(0)
    while len(os.listdir(fields["folder"])) < 16:
        time.sleep(0.01)
    return 1.0
def hangs(prompt, completion, fields):
    open(f"{fields['folder']}/{os.getpid()}", "w").close()
    time.sleep(60)
"""


class Talk:
    """A worker, spoken to in lines."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pefx.rl.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ROOT},
            start_new_session=True,
        )

    def say(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdout is not None
        self.say(job)
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def talk(tmp_path: Path):
    (tmp_path / "worker_rewards.py").write_text(MODULE)
    talk = Talk(tmp_path)
    yield talk
    with talk.process as process:
        process.kill()


def job(config: TaskConfig, text: str = "x", **data: object) -> dict[str, Any]:
    return {"task": asdict(config), "prompt": "p", "data": data, "texts": [text]}


def named(function: str, timeout: float = 20.0) -> TaskConfig:
    return TaskConfig("jsonl", path="a", reward=f"worker_rewards:{function}", timeout=timeout)


def alive(folder: Path) -> list[str]:
    """Which of the processes that named themselves in a folder still run."""
    found = []
    for path in folder.iterdir():
        try:
            state = Path(f"/proc/{path.name}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        found += [path.name] if state != "Z" else []
    return found


def wait_for(condition) -> bool:
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_it_answers_for_built_in_tasks(talk):
    right = talk.ask(job(TaskConfig("arithmetic"), "19\n", answer="19"))
    assert right == {"turn": {"done": True, "observation": "", "reward": 1.0, "parts": {"exact": 1.0, "close": 1.0}}}
    assert talk.ask(job(TaskConfig("lookup"), "get a\n", values={"a": 7}))["turn"]["observation"] == "7\n"
    assert talk.ask(job(TaskConfig("arithmetic"), "19\n"))["fault"] == "raised"


def test_no_evaluation_changes_the_next(talk):
    assert [talk.ask(job(named("state")))["turn"]["reward"] for _ in range(3)] == [1.0, 1.0, 1.0]


def test_what_a_function_prints_or_reads_is_not_for_the_worker(talk):
    assert talk.ask(job(named("talks"), reads=False))["turn"]["reward"] == 1.0
    assert talk.ask(job(named("talks"), reads=True))["message"].startswith("EOFError")
    assert talk.ask(job(named("state")))["turn"]["reward"] == 1.0


def test_a_function_is_looked_at_without_a_call(talk):
    assert talk.ask({"reward": "worker_rewards:state"}) == {}
    assert "gone is not there" in talk.ask({"reward": "worker_rewards:gone"})["problem"]
    assert talk.ask(job(named("gone")))["fault"] == "raised"


def test_children_of_a_reward_die_with_it_wherever_they_went(talk, tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    assert talk.ask(job(named("family"), folder=str(folder)))["turn"]["reward"] == 1.0
    assert len(list(folder.iterdir())) == 16
    assert wait_for(lambda: not alive(folder))
    assert talk.ask(job(named("state")))["turn"]["reward"] == 1.0


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_nothing_is_left_when_the_run_is_gone(talk, tmp_path, how):
    folder = tmp_path / "pids"
    folder.mkdir()
    talk.say(job(named("hangs"), folder=str(folder)))
    assert wait_for(lambda: len(alive(folder)) == 1)
    talk.process.stdin.close() if how == "closed" else talk.process.kill()
    assert talk.process.wait(15) is not None
    assert wait_for(lambda: not alive(folder))


def test_it_starts_without_an_array_framework_and_without_numpy():
    code = (
        "import pefx.rl.reward_worker, sys; print([n for n in ('numpy', 'jax', 'flax', 'grain') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_a_config_comes_through_json():
    config = TaskConfig("sorting", 2, options=(("items", "letters"), ("order", "any")), partial=0.5)
    assert config_of(json.loads(json.dumps(asdict(config)))) == config
    assert isinstance(judge_of(config), Generated)
