"""Rates and remaining time, from a clock that is told what to say."""

import io

from rich.console import Console

from pefx.training.progress import Rate, Reporter


def test_the_first_step_compiles_and_does_not_count() -> None:
    times = iter([100.0, 102.0, 102.0, 104.0, 104.0, 104.0])
    rate = Rate(lambda: next(times))
    assert rate.tokens_per_second == 0.0
    assert rate.remaining(3) is None
    rate.add(50.0)  # at 100
    rate.add(50.0)
    assert rate.tokens_per_second == 25.0  # 50 tokens, read at 102
    assert rate.remaining(3) == 6.0  # one step in 2 s
    rate.add(50.0)
    assert rate.tokens_per_second == 25.0


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with Reporter("run", 3, 0, Console(file=out, highlight=False, soft_wrap=True)) as reporter:
        reporter.say("[held-out] 2.5")
        for step in (1, 2, 3):
            reporter.step(step, 2.0, 64.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "run  [held-out] 2.5"
    assert lines[1].startswith("run  step 1/3  loss 2.000")
    assert "tok/s" in lines[-1]
    assert "0:00 left" in lines[-1]
    assert "step 3/3" in lines[-1]
