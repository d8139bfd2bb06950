"""Expressions run in the sandbox; only results count, and what is right cannot be read there."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.rl.sandbox import Ran
from pefx.rl.tasks import programs
from pefx.rl.tasks.programs import HIDDEN, KIND, SHOWN, is_expression, step
from pefx.rl.tasks.protocol import Problem

INPUTS = [1, 2, 4, 7, 9]
PROBLEM = Problem("code 1:3 2:5 4:9\n", {"inputs": INPUTS, "outputs": [2 * x + 1 for x in INPUTS], "answer": "2*x+1"})


@pytest.mark.parametrize("said", ["2*x+1", " 1+x+x # or so", "(lambda y: y + y + 1)(x)\nmore"])
def test_what_gives_the_right_results_is_right(said):
    turn = step(PROBLEM, [said])
    assert (turn.reward, dict(turn.parts)) == (1.0, {"parsed": 1.0, "ran": 1.0})


@pytest.mark.parametrize(
    ("said", "close", "ran"),
    [
        ("2*x", 0, 1),
        ("2*x+1 if x < 4 else 0", 2 / 5, 1),
        ("float(2*x+1)", 0, 1),
        ("1/(x-1) and 2*x+1", 4 / 5, 1),
        ("[print('[3, 5, 9, 15, 19]'), __import__('sys').exit()]", 1, 1),  # what it says is what counts
        ("__import__('os')._exit(0)", 0, 1),
        ("__import__('os').fork()", 0, 1),
        ("open('/tmp/pefx-never', 'w')", 0, 1),
        ("yield x", 0, 0),
        ("'a' * 10**10", 0, 1),
        ("x.__class__", 0, 1),
    ],
)
def test_what_does_not_is_not(said, close, ran):
    turn = step(PROBLEM, [said])
    assert turn.reward == pytest.approx(close)
    assert turn.parts["ran"] == ran


def test_an_answer_that_never_ends_is_wrong_after_a_while(monkeypatch):
    monkeypatch.setattr(programs, "SECONDS", 0.3)
    turn = step(PROBLEM, ["[1 for _ in iter(int, 1)]"])
    assert (turn.reward, turn.parts["ran"]) == (0.0, 0.0)


def test_what_is_no_expression_starts_nothing(monkeypatch):
    monkeypatch.setattr(programs, "run_python", None)
    for said in ("", "x = 3", "2*", "import os", "\x00", "(" * 5000, "3(4", "1) + (2"):
        assert step(PROBLEM, [said]).parts == {"parsed": 0.0, "ran": 0.0}
    assert is_expression("3(4)")


def test_what_is_right_is_not_in_the_sandbox(monkeypatch):
    given: list[tuple[str, str]] = []

    def run(code: str, stdin: str, seconds: float, megabytes: int) -> Ran:
        given.append((code, stdin))
        return Ran("[]")

    monkeypatch.setattr(programs, "run_python", run)
    step(PROBLEM, ["x"])
    assert given[0][1] == str(INPUTS)
    assert "19" not in given[0][0] + given[0][1]


@given(index=st.integers(0, 10**6), level=st.integers(1, 5))
def test_problems_show_what_their_answer_gives(index, level):
    problem = KIND.draw(Random(index), level, {})
    inputs, outputs, answer = (problem.data[name] for name in ("inputs", "outputs", "answer"))
    assert len(inputs) == len(set(inputs)) == SHOWN + HIDDEN
    assert outputs == [eval(answer, {"x": x}) for x in inputs]
    shown = problem.prompt.split()[1:]
    assert shown == [f"{x}:{y}" for x, y in zip(inputs[:SHOWN], outputs[:SHOWN])]
