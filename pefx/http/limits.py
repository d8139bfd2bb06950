"""How much a key may use: requests and tokens a minute, requests at once. Plain Python; the clock is an argument."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pefx.http.errors import Later
from pefx.http.keys import Key

MOST = 100_000  # keys whose use is remembered; those longest without a request are forgotten


@dataclass
class Bucket:
    """Holds up to `rate`, which flow in within a minute. What is used beyond is owed."""

    rate: float
    level: float
    at: float

    def fill(self, rate: float, now: float) -> None:
        """Bring the level to `now`; the rate may have changed."""
        self.rate = rate
        self.level = min(rate, self.level + rate * (now - self.at) / 60)
        self.at = now

    def wait(self, need: float) -> float:
        """Seconds until the level is `need`."""
        return max(0.0, (need - self.level) * 60 / self.rate)


@dataclass
class Use:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0


class Limits:
    """The use of each key since the server began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._uses: dict[str, Use] = {}

    @contextmanager
    def running(self, key: Key) -> Iterator[None]:
        """While a request of `key` is answered. Raises PefxError of kind "rate_limited" where it must wait."""
        use = self._use(key)
        if key.concurrent is not None and use.running >= key.concurrent:
            raise Later(f"key '{key.name}' has {use.running} requests in flight, its most", "rate_limited", 1.0)
        for what, bucket in (("requests", use.requests), ("tokens", use.tokens)):
            if bucket is not None and (seconds := bucket.wait(1.0)) > 0:
                message = f"key '{key.name}' has used up its {bucket.rate:.0f} {what} a minute; wait {seconds:.1f} s"
                raise Later(message, "rate_limited", seconds)
        if use.requests is not None:
            use.requests.level -= 1
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def charge(self, key: Key, tokens: int) -> None:
        """`tokens` were used, of prompt and answer: known at the end only, so the bucket may be owed some."""
        use = self._use(key)
        if use.tokens is not None:
            use.tokens.level -= tokens

    def _use(self, key: Key) -> Use:
        now = self._clock()
        use = self._uses.pop(key.id, None) or Use()
        self._uses[key.id] = use  # the last now
        use.requests = _filled(use.requests, key.requests_per_minute, now)
        use.tokens = _filled(use.tokens, key.tokens_per_minute, now)
        if len(self._uses) > MOST:
            oldest = next(iter(self._uses))
            if not self._uses[oldest].running:
                del self._uses[oldest]
        return use


def _filled(bucket: Bucket | None, rate: int | None, now: float) -> Bucket | None:
    if rate is None:
        return None
    bucket = bucket or Bucket(float(rate), float(rate), now)
    bucket.fill(float(rate), now)
    return bucket
