"""Values as words: ages, numbers, states, and the addresses of what is shown."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from pefx.errors import PefxError
from pefx.store.lookup import expired
from pefx.store.names import parse_reference
from pefx.store.records import Policy

AGES = (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60))


def age(text: str, now: datetime | None = None) -> str:
    """How long ago a record's time was, in the largest unit; what is no time is shown as it is."""
    try:
        seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds()
    except (ValueError, TypeError):
        return text
    for unit, length in AGES:
        count = int(seconds // length)
        if count > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def number(value: Any) -> str:
    """A number in six digits, a whole one in all of its; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.6g}"


def state_of(policy: Policy) -> str:
    """The state of a policy, `expired` where its time is over."""
    try:
        return "expired" if policy.state == "active" and expired(policy) else policy.state
    except (ValueError, TypeError):  # a time that is none
        return policy.state


def policy_address(name: str) -> str:
    """The page of a policy."""
    return f"/policy/{quote(name)}"


def revision_address(reference: str | None) -> str | None:
    """The page of a revision; None for what names none."""
    try:
        name, which = parse_reference(reference or "")
    except PefxError:
        return None
    return None if which is None else f"/revision/{quote(name)}@{quote(str(which))}"


def search_address(parameters: Mapping[str, Any], **changes: Any) -> str:
    """The page of policies that a search with `changes` finds; what is empty is left out."""
    asked = {name: value for name, value in {**parameters, **changes}.items() if value not in (None, "")}
    return f"/?{urlencode(asked)}" if asked else "/"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """What is in nested dicts, by dotted path; an empty one and any other value is a leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix[:-1]: value} if prefix else {}
    found = [flat(item, f"{prefix}{name}.") for name, item in value.items()]
    return {name: item for part in found for name, item in part.items()}
