"""What a person sees of a batch run: answers, rate, time left; and a summary."""

import time
from dataclasses import dataclass

from rich.console import Console

from pefx.progress import Display, clock
from pefx.store.tiers import TierCounts


@dataclass
class Counts:
    """Of one process: requests answered, tokens of their prompts and of their answers, steps of the device."""

    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0


class Reporter(Display):
    """Progress over `total` requests, of which `before` were answered by earlier starts of the run."""

    def __init__(self, name: str, total: int, before: int, console: Console | None = None):
        super().__init__(name, total, before, console or Console(stderr=True, highlight=False, soft_wrap=True))
        self._before = before
        self._begun = time.monotonic()

    def update(self, counts: Counts) -> None:
        """Show where the run stands, if it is time."""
        self.show(self._before + counts.answers, self.line(counts))

    def line(self, counts: Counts) -> str:
        """Answers of all, rates of this process, and the time left at its rate."""
        seconds = self._seconds()
        done = self._before + counts.answers
        text = f"{done}/{self.total} answers, {counts.tokens / seconds:,.0f} tokens/s"
        if not counts.answers:
            return text
        return f"{text}, {clock((self.total - done) * seconds / counts.answers)} left"

    def summary(self, counts: Counts, answered: int, errors: int, out: str, adapters: TierCounts | None = None) -> None:
        """The closing lines: all answers of the run, then what this process did, and where its adapters were found."""
        self.say(f"{answered} answers, {errors} of them errors, in {out}")
        if counts.answers:
            seconds = self._seconds()
            self.say(
                f"this start answered {counts.answers} in {clock(seconds)}, {counts.steps} steps; "
                f"{counts.prompt_tokens:,} prompt tokens, {counts.tokens:,} generated, "
                f"{counts.tokens / seconds:,.0f} generated/s"
            )

        if adapters is not None and adapters.slot_hits + adapters.slot_loads:
            host, missed = adapters.host, adapters.host.shared + adapters.host.misses
            self.say(
                f"adapters: slots {adapters.slot_hits} hits, {adapters.slot_loads} misses, "
                f"{adapters.slot_evictions} evictions; host memory {host.hits} hits, {missed} misses, "
                f"{host.evictions} evictions; {host.loads} reads of {host.bytes_loaded / 2**20:,.1f} MiB, "
                f"{host.wait_seconds:.2f} s waited for them"
            )

    def _seconds(self) -> float:
        return max(time.monotonic() - self._begun, 1e-9)
