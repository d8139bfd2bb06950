"""pefx.serving.progress: lines a person can use, on a terminal and off it."""

import io

import pytest
from rich.console import Console

from pefx import progress
from pefx.serving.progress import Counts, Reporter


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_plain_lines_every_few_seconds_with_rate_and_rest(now: list[float]):
    text = io.StringIO()
    with Reporter("run", total=100, before=20, console=Console(file=text, width=200)) as reporter:
        reporter.update(Counts(answers=1))
        assert text.getvalue() == ""
        now[0] += 10
        reporter.update(Counts(answers=40, tokens=1000))
        assert text.getvalue() == "run  60/100 answers, 100 tokens/s, 0:10 left\n"
        reporter.update(Counts(answers=50, tokens=1000))
        assert text.getvalue().count("\n") == 1


def test_nothing_answered_yet_has_no_rest(now: list[float]):
    now[0] += 1
    assert "left" not in Reporter("run", 10, 0, Console(file=io.StringIO())).line(Counts())


def test_summary(now: list[float]):
    text = io.StringIO()
    reporter = Reporter("run", 100, 90, Console(file=text, width=200))
    now[0] += 2
    reporter.summary(Counts(answers=10, prompt_tokens=50, tokens=2000, steps=9), answered=100, errors=3, out="o.jsonl")
    assert "run  100 answers, 3 of them errors, in o.jsonl" in text.getvalue()
    assert "answered 10 in 0:02, 9 steps; 50 prompt tokens, 2,000 generated, 1,000 generated/s" in text.getvalue()
