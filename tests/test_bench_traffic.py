"""Traffic of mixed lengths is the same for all peers, and each peer's batches hold all of it."""

import importlib
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.peers.traffic import Traffic, longest_first

TRAFFIC = Traffic(requests=64, adapters=16, batch=8, way="static", seed=2)


def test_lengths_are_within_bounds_and_the_same_whatever_the_words() -> None:
    asked = TRAFFIC.draw(1000)
    assert [(len(one.prompt), one.new) for one in asked] == TRAFFIC.lengths()
    again = TRAFFIC.draw(1000, turn=1)
    assert [(len(one.prompt), one.new) for one in again] == TRAFFIC.lengths()
    assert asked == TRAFFIC.draw(1000)
    assert all(a.prompt != b.prompt for a, b in zip(asked, again))
    assert all(16 <= len(one.prompt) <= 256 and 8 <= one.new <= 128 for one in asked)
    assert TRAFFIC.tokens == sum(one.new for one in asked)
    assert TRAFFIC.prompt_tokens == sum(len(one.prompt) for one in asked)
    assert set(Counter(one.adapter for one in asked).values()) == {4}


def test_the_first_requests_are_those_of_the_whole() -> None:
    first = Traffic(requests=64, adapters=16, batch=8, way="sorted", seed=2, first=10)
    assert first.draw(1000) == TRAFFIC.draw(1000)[:10]
    assert first.tokens == sum(new for _, new in TRAFFIC.lengths()[:10])
    lengths = [one.new for one in longest_first(first.draw(1000))]
    assert lengths == sorted(lengths, reverse=True)


def test_what_does_not_share_out_is_refused() -> None:
    with pytest.raises(ValueError, match="do not share out"):
        Traffic(requests=10, adapters=3, batch=2, way="static")
    with pytest.raises(ValueError, match="batch of at least 1"):
        Traffic(requests=10, adapters=2, batch=0, way="static")


def test_a_worker_is_told_which_case_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(serving.__file__).parent / "peers"))
    case = importlib.import_module("traffic").Traffic(**vars(TRAFFIC))
    assert case.tokens == TRAFFIC.tokens
    assert vars(TRAFFIC)["kind"] == "serve"
    sys.modules.pop("traffic")


def test_ratios_are_medians_of_rounds_over_the_better_way() -> None:
    rates = {"continuous": [10.0, 20.0, 30.0], "peft-grouped": [1.0, 2.0, 3.0], "peft-mixed": [5.0, 5.0, 6.0]}
    assert serving.ratio(rates, ("peft-grouped", "peft-mixed")) == statistics.median([2, 4, 5])
    assert serving.ratio(rates, ("skyrl",)) is None
    options = serving.Options(requests=16, adapters=4, skyrl_requests=8)
    chosen = [entry for entry in serving.entries(options) if entry.key in rates]
    facts: dict[str, Any] = {"command": "x", "commit": "y", "date": "z", "machine": "m", "repeats": 3}
    table = serving.markdown(chosen, rates, facts)
    assert "| transformers + PEFT, the better way | 4.00 |" in table
    assert "SkyRL" not in table
