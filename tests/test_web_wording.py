"""Values as words and addresses."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pefx.config import AdapterSpec
from pefx.store.records import Policy
from pefx.web.wording import age, flat, number, policy_address, revision_address, search_address, state_of

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
POLICY = Policy("a", "sha256:0", AdapterSpec(), 1, "", "", "")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=60), "1 minute ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=29), "29 days ago"),
        (timedelta(days=31), "1 month ago"),
        (timedelta(days=800), "2 years ago"),
        (timedelta(days=-3), "just now"),
    ],
)
def test_age(before: timedelta, said: str) -> None:
    assert age((NOW - before).isoformat(), NOW) == said


@pytest.mark.parametrize("text", ["", "yesterday", "2026-07-01", "2026-07-01T00:00:00"])
def test_what_is_no_time_is_shown_as_it_is(text: str) -> None:
    assert age(text, NOW) == text  # the last ones have no zone


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1234567, "1,234,567"),
        (2.0, "2"),
        (0.123456789, "0.123457"),
        (1e-7, "1e-07"),
        (1e300, "1e+300"),
        (True, "True"),
        ("x", "x"),
    ],
)
def test_numbers(value: object, said: str) -> None:
    assert number(value) == said


def test_states() -> None:
    assert state_of(POLICY) == "active"
    assert state_of(replace(POLICY, expires="2001-01-01T00:00:00+00:00")) == "expired"
    assert state_of(replace(POLICY, expires="2999-01-01T00:00:00+00:00")) == "active"
    assert state_of(replace(POLICY, expires="soon")) == "active"
    assert state_of(replace(POLICY, expires="2001-01-01T00:00:00+00:00", state="retired")) == "retired"


def test_addresses() -> None:
    assert policy_address("users/ann") == "/policy/users/ann"
    assert revision_address("users/ann@3") == "/revision/users/ann@3"
    assert revision_address("ann@a=b+c") == "/revision/ann@a%3Db%2Bc"
    for wrong in (None, "", "ann", "javascript:alert(1)", "a@<b>", "//evil.example@1", "../a@1"):
        assert revision_address(wrong) is None
    assert search_address({}) == "/"
    assert search_address({"prefix": "a/", "behind": "a/b"}, behind=None, tag='"<') == "/?prefix=a%2F&tag=%22%3C"


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [{"e": 1}]}) == {"a.b": 1, "a.c": {}, "d": [{"e": 1}]}
    assert flat({}) == {}
