"""pefx.progress: a bar on a terminal, a line every few seconds off it."""

import io

import pytest
from rich.console import Console

from pefx import progress
from pefx.progress import Display, clock


def test_clock() -> None:
    assert [clock(s) for s in (0.0, 59.6, 61.0, 3600.0, 3725.0)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]


def test_off_a_terminal_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    text = io.StringIO()
    with Display("run", 10, 0, Console(file=text, highlight=False, soft_wrap=True)) as display:
        display.show(1, "one")
        seconds[0] += progress.LINE_SECONDS
        display.show(2, "two")
        display.show(3, "three")
        display.show(4, "four", now=True)
        display.say("[five]")  # not markup
    assert text.getvalue() == "run  two\nrun  four\nrun  [five]\n"


def test_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    with Display("run", 2, 0, Console(file=text, force_terminal=True, width=120)) as display:
        display.show(1, "step 1/2")
        display.show(2, "step 2/2")
    assert "step 2/2" in text.getvalue()
