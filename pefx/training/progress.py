"""Progress with rate and remaining time: a live bar on a terminal, one plain line every few seconds elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 5.0


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Rate:
    """Tokens per second since the first step of this process, which is left out because it compiles."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._start: float | None = None
        self._steps = 0
        self._tokens = 0.0

    def add(self, tokens: float) -> None:
        """Count one finished step of `tokens` tokens."""
        if self._start is None:
            self._start = self._now()
            return
        self._steps += 1
        self._tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        """0 until two steps are done."""
        return self._tokens / max(self._elapsed(), 1e-9) if self._steps else 0.0

    def remaining(self, steps: int) -> float | None:
        """Seconds that `steps` more steps take at this rate; None when nothing is known yet."""
        return steps * self._elapsed() / self._steps if self._steps else None

    def _elapsed(self) -> float:
        return self._now() - self._start if self._start is not None else 0.0


class Reporter:
    """Shows the steps of one run. Use as a context manager; `say` prints a line of its own at any time."""

    def __init__(self, name: str, steps: int, done: int, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.name, self.steps = name, steps
        self.rate = Rate()
        self._last_line = -LINE_SECONDS
        self._bar: Progress | None = None
        if self.console.is_terminal:
            text = TextColumn("{task.fields[text]}", style="dim")
            title = TextColumn("{task.description}", style="bold")
            self._bar = Progress(title, BarColumn(), text, console=self.console)
            self._task = self._bar.add_task(name, total=steps, completed=done, text="compiling")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, markup=False)

    def step(self, step: int, loss: float, tokens: float) -> None:
        """Step number `step` (from 1) is done; `loss` in nats per token, `tokens` counted in the loss."""
        self.rate.add(tokens)
        remaining = self.rate.remaining(self.steps - step)
        text = f"step {step}/{self.steps}  loss {loss:.3f}"
        if remaining is not None:
            text += f"  {self.rate.tokens_per_second:,.0f} tok/s  {clock(remaining)} left"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or step == self.steps:
            self._last_line = now
            self.say(f"{self.name}  {text}")
