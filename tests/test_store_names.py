"""Names and references: what people may give, and the order of keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.store.names import after, check_alias, check_label, check_name, is_alias, parse_reference, revision_key
from tests.store_small import refused

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,8}(/[A-Za-z0-9._-]{1,8}){0,2}", fullmatch=True)


def test_references() -> None:
    assert parse_reference("a/b") == ("a/b", None)
    assert parse_reference("a/b@12") == ("a/b", 12)
    assert parse_reference("a/b@prod") == ("a/b", "prod")
    for bad in ("a@", "a@1@2", "a@b c", "a@" + "1" * 11):
        assert "after '@' comes" in refused("unknown_revision", parse_reference, bad)
    refused("bad_name", parse_reference, "../a@1")


@pytest.mark.parametrize("label", ["", "a b", "a/b", "a@b", "x" * 65, "ü", "a\n"])
def test_labels(label: str) -> None:
    assert len(refused("bad_name", check_label, "tag", label)) < 150
    assert not is_alias(label)


def test_an_alias_is_no_number() -> None:
    refused("bad_name", check_alias, "12")
    assert [is_alias(x) for x in ("v1.2", "12", None, 3)] == [True, False, False, False]


@given(NAMES, NAMES, st.integers(1, 10**10 - 1), st.integers(1, 10**10 - 1))
def test_keys_of_a_policy_lie_together_in_order(name: str, other: str, first: int, second: int) -> None:
    start = revision_key(name, 0)[:-10]
    assert start <= revision_key(name, first) < after(start)
    assert (revision_key(name, first) < revision_key(name, second)) == (first < second)
    assert (name == other) == (start <= revision_key(other, first) < after(start))


def test_good_names_pass() -> None:
    for name in ("a", "a" * 128, "Users/alice-1/v2.0_x", "...x", "0"):
        check_name(name)


@pytest.mark.parametrize("which", ["²", "٣", "1²", "①"])
def test_only_ascii_digits_are_numbers(which: str) -> None:
    refused("unknown_revision", parse_reference, f"ann@{which}")
