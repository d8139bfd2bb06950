"""What a key may use, by a clock that is set by hand."""

from typing import Any

import pytest

from pefx.http import limits as module
from pefx.http.errors import Later
from pefx.http.keys import Key
from pefx.http.limits import Limits


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(id: str = "1", **limits: Any) -> Key:
    return Key(id=id, name="ann", hash="", created="", **limits)


def refused(limits: Limits, key: Key) -> float:
    with pytest.raises(Later) as caught, limits.running(key):
        pass
    assert caught.value.kind == "rate_limited"
    return caught.value.seconds


def ask(limits: Limits, key: Key, times: int = 1) -> None:
    for _ in range(times):
        with limits.running(key):
            pass


def test_requests_a_minute() -> None:
    clock, ann = Clock(), key(requests_per_minute=60)
    limits = Limits(clock)
    ask(limits, ann, 60)
    assert refused(limits, ann) == pytest.approx(1)
    clock.now += 1
    ask(limits, ann)
    refused(limits, ann)
    clock.now += 3600
    ask(limits, ann, 60)  # no more than a minute's worth is saved up
    refused(limits, ann)


def test_tokens_are_paid_afterwards() -> None:
    clock, ann = Clock(), key(tokens_per_minute=600)
    limits = Limits(clock)
    ask(limits, ann)
    limits.charge(ann, 650)
    assert refused(limits, ann) == pytest.approx(5.1)
    clock.now += 5.2
    ask(limits, ann)


def test_at_once() -> None:
    limits, ann = Limits(Clock()), key(concurrent=2)
    with limits.running(ann), limits.running(ann):
        refused(limits, ann)
    ask(limits, ann, 5)
    with pytest.raises(ValueError, match="x"), limits.running(ann):
        raise ValueError("x")
    ask(limits, ann, 5)


def test_a_limit_that_changes_counts_at_once() -> None:
    limits = Limits(Clock())
    ask(limits, key(requests_per_minute=10), 10)
    refused(limits, key(requests_per_minute=20))
    ask(limits, key())
    ask(limits, key("2", requests_per_minute=1))  # another key is another matter


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    limits = Limits(Clock())
    for number in range(10):
        ask(limits, key(str(number), requests_per_minute=1))
    assert list(limits._uses) == ["7", "8", "9"]
