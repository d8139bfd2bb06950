"""pefx.serving.summary: quantiles within their promise, sums over all starts."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.summary import Cost, Histogram, Totals


@given(st.lists(st.floats(1e-4, 1e5), min_size=1, max_size=200), st.sampled_from([1, 50, 90, 99, 100]))
def test_quantiles_are_off_by_five_percent_at_most(seconds: list[float], percent: int):
    histogram = Histogram()
    for value in seconds:
        histogram.add(value)
    exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
    assert histogram.quantile(percent) == pytest.approx(exact, rel=0.05)
    assert histogram.maximum == max(seconds)


def test_times_out_of_all_bounds_and_none():
    histogram = Histogram()
    assert histogram.summary() == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    for value in (0.0, 1e-9, 1e9):
        histogram.add(value)
    assert histogram.quantile(50) == pytest.approx(1e-4)
    assert histogram.summary()["max"] == 1e9


def test_totals():
    totals = Totals()
    for _ in range(2):
        totals.start()
        totals.add({"id": "a"}, Cost(at=1.0, prompt_tokens=4, cached_tokens=3, tokens=2, waited=0.25, seconds=0.5))
        totals.add({"id": "b"}, Cost(at=4.0, prompt_tokens=4, cached_tokens=0, tokens=6, waited=0.25, seconds=2.0))
        totals.add({"id": None, "error": {"type": "invalid_json"}}, None)
        totals.add({"id": "c", "error": {"type": "damaged"}}, Cost(2.0, 5, 0, 0, 9.0, 9.0))
    summary = totals.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary == {
        "requests": 8,
        "errors": {"damaged": 2, "invalid_json": 2},
        "starts": 2,
        "seconds": 8.0,
        "prompt_tokens": 26,
        "cached_tokens": 6,
        "generated_tokens": 16,
        "generated_tokens_per_second": 2.0,
        "first_token_seconds": summary["first_token_seconds"],
        "request_seconds": summary["request_seconds"],
    }
    assert summary["first_token_seconds"]["p99"] == pytest.approx(0.25, rel=0.05)
    assert summary["request_seconds"]["max"] == 2.0
    assert summary["request_seconds"]["p50"] == pytest.approx(0.5, rel=0.05)
