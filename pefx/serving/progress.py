"""What a person sees of a batch run: a live line on a terminal, a plain one every few seconds otherwise; a summary."""

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 5.0


@dataclass
class Counts:
    """Of one process: requests answered, tokens of their prompts and of their answers, steps of the device."""

    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0


def clock(seconds: int | float) -> str:
    """Hours, minutes and seconds, as `0:01:05`."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


class Reporter:
    """Progress over `total` requests, of which `before` were answered by earlier starts of the run."""

    def __init__(self, name: str, total: int, before: int, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._name, self._total, self._before = name, total, before
        self._begun = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(name, total=total, completed=before, text="")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line of its own."""
        self.console.print(line, markup=False)

    def update(self, counts: Counts) -> None:
        """Show where the run stands, if it is time."""
        if self._bar:
            self._bar.update(self._task, completed=self._before + counts.answers, text=self.line(counts))
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.say(f"{self._name}: {self.line(counts)}")

    def line(self, counts: Counts) -> str:
        """Answers of all, rates of this process, and the time left at its rate."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        done = self._before + counts.answers
        text = f"{done}/{self._total} answers, {counts.tokens / seconds:,.0f} tokens/s"
        if not counts.answers:
            return text
        return f"{text}, {clock((self._total - done) * seconds / counts.answers)} left"

    def summary(self, counts: Counts, answered: int, errors: int, out: str) -> None:
        """The closing lines: all answers of the run, then what this process did."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        self.say(f"{self._name}: {answered} answers, {errors} of them errors, in {out}")
        if counts.answers:
            self.say(
                f"{self._name}: this start answered {counts.answers} in {clock(seconds)}, {counts.steps} steps; "
                f"{counts.prompt_tokens:,} prompt tokens, {counts.tokens:,} generated, "
                f"{counts.tokens / seconds:,.0f} generated/s"
            )
