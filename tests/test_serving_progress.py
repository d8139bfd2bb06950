"""pefx.serving.progress: lines a person can use, on a terminal and off it."""

import io

import pytest
from rich.console import Console

from pefx import progress
from pefx.serving.progress import Counts, Reporter
from pefx.store.loads import LoadCounts
from pefx.store.tiers import TierCounts


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
    assert "adapters" not in text.getvalue()


def test_summary_of_adapters(now: list[float]):
    host = LoadCounts(hits=5, shared=1, misses=2, loads=3, evictions=4, bytes_loaded=3 << 20, wait_seconds=0.25)
    for counts, said in ((TierCounts(30, 8, 6, host), True), (TierCounts(0, 0, 0, LoadCounts()), False)):
        text = io.StringIO()
        Reporter("run", 9, 0, Console(file=text, width=200)).summary(Counts(), 9, 0, "o.jsonl", counts)
        assert ("adapters" in text.getvalue()) == said
        if said:
            assert "slots 30 hits, 8 misses, 6 evictions; host memory 5 hits, 3 misses, 4 evictions" in text.getvalue()
            assert "3 reads of 3.0 MiB, 0.25 s waited for them" in text.getvalue()
