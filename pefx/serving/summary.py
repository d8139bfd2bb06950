"""What a batch run came to: requests, errors, tokens and times of all its starts, in memory that does not grow."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Times are counted in buckets whose bounds grow by a constant factor, 24 to a decade: a quantile is off by 5 % at most.
SHORTEST, DECADES, PER_DECADE = 1e-4, 10, 24
QUANTILES = (50, 90, 99)


class Cost(NamedTuple):
    """What one answer took: tokens, and seconds. `at` is when it was there, since its start of the run began.

    `waited` is from its submission to its first token, `seconds` to its end.
    """

    at: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    waited: float
    seconds: float


class Histogram:
    """Seconds, by size; `maximum` is exact."""

    def __init__(self):
        self._counts = [0] * (DECADES * PER_DECADE + 1)
        self.maximum = 0.0

    def add(self, seconds: float) -> None:
        place = math.ceil(PER_DECADE * math.log10(max(seconds, SHORTEST) / SHORTEST))
        self._counts[min(place, len(self._counts) - 1)] += 1
        self.maximum = max(self.maximum, seconds)

    def quantile(self, percent: int) -> float:
        """The time that `percent` percent of all did not exceed; 0 where there are none."""
        total, seen = sum(self._counts), 0
        for place, count in enumerate(self._counts):
            seen += count
            if count and seen >= total * percent / 100:
                middle = SHORTEST * 10 ** ((place - 0.5 * (place > 0)) / PER_DECADE)
                return min(middle, self.maximum)
        return 0.0

    def summary(self) -> dict[str, float]:
        found = {f"p{percent}": self.quantile(percent) for percent in QUANTILES}
        return {name: rounded(value) for name, value in {**found, "max": self.maximum}.items()}


@dataclass
class Totals:
    """Of all answers of a run, whichever start gave them."""

    starts: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=Histogram)
    request: Histogram = field(default_factory=Histogram)
    _before: float = 0.0
    _latest: float = 0.0

    def start(self) -> None:
        """Another start of the run begins."""
        self.starts += 1
        self._before, self._latest = self.seconds, 0.0

    def add(self, row: dict[str, Any], cost: Cost | None) -> None:
        """One more answer; a request that was refused has no cost."""
        self.answers += 1
        if "error" in row:
            self.errors[row["error"]["type"]] += 1
        if cost is None:
            return
        self.prompt_tokens += cost.prompt_tokens
        self.cached_tokens += cost.cached_tokens
        self.tokens += cost.tokens
        self._latest = max(self._latest, cost.at)
        if "error" not in row:
            self.first_token.add(cost.waited)
            self.request.add(cost.seconds)

    @property
    def seconds(self) -> float:
        """Of all starts, each from its beginning to its last answer."""
        return self._before + self._latest

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        seconds = max(self.seconds, 1e-9)
        return {
            "requests": self.answers,
            "errors": dict(sorted(self.errors.items())),
            "starts": self.starts,
            "seconds": rounded(self.seconds),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.tokens,
            "generated_tokens_per_second": rounded(self.tokens / seconds),
            "first_token_seconds": self.first_token.summary(),
            "request_seconds": self.request.summary(),
        }


def rounded(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")
