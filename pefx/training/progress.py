"""What a person sees of a training run: step, loss, rate, time left."""

import time
from collections.abc import Callable

from rich.console import Console

from pefx.progress import Display, clock


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


class Reporter(Display):
    """Shows the `steps` steps of one run, `done` of them done before."""

    def __init__(self, name: str, steps: int, done: int, console: Console | None = None):
        super().__init__(name, steps, done, console or Console(highlight=False, soft_wrap=True))
        self.rate = Rate()
        self._first = True

    def step(self, step: int, loss: float, tokens: float) -> None:
        """Step number `step` (from 1) is done; `loss` in nats per token, `tokens` counted in the loss."""
        self.rate.add(tokens)
        remaining = self.rate.remaining(self.total - step)
        text = f"step {step}/{self.total}  loss {loss:.3f}"
        if remaining is not None:
            text += f"  {self.rate.tokens_per_second:,.0f} tok/s  {clock(remaining)} left"
        # The first step says that compilation is over, the last that all are done.
        self.show(step, text, now=self._first or step == self.total)
        self._first = False
