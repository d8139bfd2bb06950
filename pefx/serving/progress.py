"""What a person sees of a batch run: answers, rate, time left; and a summary."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pefx.progress import Display, clock


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

    def summary(self, summary: dict[str, Any], out: str) -> None:
        """The closing lines, from what `Batch.summary` gives: the run, its times, and where adapters were found."""
        errors = summary["errors"]
        kinds = f" ({', '.join(f'{count} {kind}' for kind, count in errors.items())})" if errors else ""
        self.say(f"{summary['requests']:,} answers, {sum(errors.values()):,} of them errors{kinds}, in {out}")
        if not summary["generated_tokens"] + summary["prompt_tokens"]:
            return
        here, starts = summary["this_start"], summary["starts"]
        self.say(
            f"{clock(summary['seconds'])} in {starts} start{'s' * (starts > 1)}; {summary['prompt_tokens']:,} prompt "
            f"tokens ({summary['cached_tokens']:,} of them cached), {summary['generated_tokens']:,} generated, "
            f"{summary['generated_tokens_per_second']:,.0f} generated/s; {here['preemptions']} preemptions"
        )
        for name, what in (("first_token_seconds", "first token"), ("request_seconds", "whole request")):
            times = ", ".join(f"{quantile} {seconds:.3g}" for quantile, seconds in summary[name].items())
            self.say(f"seconds to the {what}: {times}")
        if summary["adapters"]:
            self.say(
                f"{summary['adapters']:,} adapters; this start: slots {here['slot_hits']} hits, {here['slot_loads']} "
                f"loads, {here['slot_evictions']} evictions; host memory {here['host_hits']} hits, "
                f"{here['host_misses']} misses, {here['host_evictions']} evictions; {here['store_reads']} reads of "
                f"{here['store_bytes'] / 2**20:,.1f} MiB, {here['store_wait_seconds']:.2f} s waited for them"
            )

    def _seconds(self) -> float:
        return max(time.monotonic() - self._begun, 1e-9)
