"""pefx.serving.progress: lines a person can use, on a terminal and off it."""

import io
from typing import Any

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


def summary(**changes: Any) -> dict[str, Any]:
    times = {"p50": 0.5, "p90": 1.25, "p99": 2.0, "max": 12.0}
    this_start = {
        "answers": 50,
        "steps": 9,
        "preemptions": 2,
        "slot_hits": 30,
        "slot_loads": 8,
        "slot_evictions": 6,
        "host_hits": 5,
        "host_misses": 3,
        "host_evictions": 4,
        "store_reads": 3,
        "store_bytes": 3 << 20,
        "store_wait_seconds": 0.25,
    }
    usual = {
        "requests": 1100,
        "errors": {"damaged": 1, "unknown_policy": 2},
        "starts": 2,
        "seconds": 2.0,
        "prompt_tokens": 5000,
        "cached_tokens": 1000,
        "generated_tokens": 2000,
        "generated_tokens_per_second": 1000.0,
        "first_token_seconds": times,
        "request_seconds": times,
        "adapters": 7,
        "this_start": this_start,
    }
    return usual | changes


def said(**changes: Any) -> list[str]:
    text = io.StringIO()
    Reporter("run", 100, 90, Console(file=text, width=400)).summary(summary(**changes), "o.jsonl")
    return text.getvalue().splitlines()


def test_summary():
    assert said() == [
        "run  1,100 answers, 3 of them errors (1 damaged, 2 unknown_policy), in o.jsonl",
        "run  0:02 in 2 starts; 5,000 prompt tokens (1,000 of them cached), 2,000 generated, 1,000 generated/s; "
        "2 preemptions",
        "run  seconds to the first token: p50 0.5, p90 1.25, p99 2, max 12",
        "run  seconds to the whole request: p50 0.5, p90 1.25, p99 2, max 12",
        "run  7 adapters; this start: slots 30 hits, 8 loads, 6 evictions; host memory 5 hits, 3 misses, 4 evictions; "
        "3 reads of 3.0 MiB, 0.25 s waited for them",
    ]


def test_summary_of_less():
    assert len(said(adapters=0)) == 4
    assert said(errors={}, prompt_tokens=0, generated_tokens=0) == ["run  1,100 answers, 0 of them errors, in o.jsonl"]
