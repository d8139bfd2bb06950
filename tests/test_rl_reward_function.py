"""Functions are found by name; what they return is a finite number, or an error that says what it was."""

import sys
from pathlib import Path

import pytest

from pefx.errors import PefxError
from pefx.rl.reward_function import NotANumber, RewardFunction, checked, number
from pefx.rl.tasks.protocol import Problem, Turn

MODULE = """
import numpy as np
number = 3
def good(prompt, completion, fields): return 0.5 if (prompt, completion, fields) == ("p", "b", {"k": 1}) else 0.0
def right(prompt, completion, fields): return completion == "b"
def scalar(prompt, completion, fields): return np.float32(0.25)
def parts(prompt, completion, fields): return {"reward": 1, "style": True}
def more(prompt, completion, fields, threshold=3): return 1
def two(prompt, completion): return 1
def nan(*_): return float("nan")
def inf(*_): return {"reward": 1.0, "style": float("inf")}
def text(*_): return "1"
def nothing(*_): return None
def array(*_): return np.zeros(3)
def no_reward(*_): return {"style": 1}
def huge(*_): return 10**400
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "named_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("x = 1\nimport nowhere_to_be_found\n")
    (tmp_path / "leaving_rewards.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("named_rewards", None)


def step(name: str) -> Turn:
    return RewardFunction(f"named_rewards:{name}").step(Problem("p", {"k": 1}), ["a", "b"])


def test_what_a_function_may_return():
    assert step("good") == Turn(True, reward=0.5)
    assert step("right") == Turn(True, reward=1.0)
    assert step("scalar") == Turn(True, reward=0.25)
    assert step("parts") == Turn(True, reward=1.0, parts={"style": 1.0})
    assert step("more") == Turn(True, reward=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "named_rewards:nan returned nan, which is not finite"),
        ("inf", "named_rewards:inf returned style= inf, which is not finite"),
        ("text", "returned a str, which is no number"),
        ("nothing", "returned None, which is no number"),
        ("array", "returned a ndarray, which is no number"),
        ("no_reward", "named_rewards:no_reward returned a dict without 'reward'"),
        ("huge", "returned a int, which is no number"),
    ],
)
def test_what_it_may_not(name, message):
    with pytest.raises(NotANumber, match=message):
        step(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("named_rewards", "'named_rewards' names no function; the form is 'module:function'"),
        (":f", "names no function"),
        ("nowhere_rewards:f", r"module nowhere_rewards cannot be imported \(ModuleNotFoundError: No module named"),
        ("broken_rewards:f", "module broken_rewards cannot be imported .*nowhere_to_be_found"),
        ("leaving_rewards:f", r"module leaving_rewards cannot be imported \(SystemExit: 3\)"),
        ("named_rewards:gone", r"gone is not there in named_rewards \(.*named_rewards\.py\)"),
        ("named_rewards:number", "number is not callable in named_rewards"),
        (
            "named_rewards:two",
            r"takes \(prompt, completion\), but is called as function\(prompt, completion, fields\)",
        ),
    ],
)
def test_a_function_that_cannot_be_called(name, message):
    with pytest.raises(PefxError, match=f"task.reward: .*{message}"):
        RewardFunction(name)


def test_turns_are_checked():
    assert checked(Turn(True, "x", 1.0, {"a": 0.5})) == Turn(True, "x", 1.0, {"a": 0.5})
    with pytest.raises(NotANumber, match="part a: nan, which is not finite"):
        checked(Turn(True, parts={"a": float("nan")}))
    with pytest.raises(NotANumber, match="x: None, which is no number"):
        number(None, "x:")
