"""Single records of a key space, each checked to be the one that was asked for."""

from datetime import UTC, datetime
from typing import Any, TypeVar

from pefx.errors import PefxError
from pefx.store.encoding import decode
from pefx.store.keyspace import Entry, Keyspace
from pefx.store.names import check_name, policy_key, revision_key, split_key
from pefx.store.records import LATEST, Policy, Revision, Stage

Record = TypeVar("Record")


def now() -> str:
    """The time as records tell it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def checked(space: Keyspace, cls: type[Record], value: bytes, key: str) -> Record:
    """The record in `value`, which must be the one that `key`, `policy` or `policy@number`, names."""
    what = cls.__name__.lower()
    where = f"catalog '{space.location}': {what} {key}" if "@" in key else f"catalog '{space.location}': {what} '{key}'"
    record: Any = decode(cls, value, where)
    found = record.name if cls is Policy else record.key
    if found != key:
        raise PefxError(f"{where} is damaged: its record names '{found}'", "damaged")
    return record


def checked_at(space: Keyspace, cls: type[Record], value: bytes, key: str) -> Record:
    """The record in `value`, which must be of the policy and number in the store's `key`."""
    name, number = split_key(key)
    return checked(space, cls, value, f"{name}@{number}")


def find_policy(space: Keyspace, name: str) -> Policy:
    """The policy `name`. PefxError kind "unknown_policy", or "no_catalog" where the whole catalog is gone."""
    return read_policy(space, name)[0]


def read_policy(space: Keyspace, name: str) -> tuple[Policy, Entry]:
    """`find_policy`, and what a change of it is conditioned on."""
    check_name(name)
    entry = space.read(policy_key(name))
    if entry.value is None:
        space.check_present()
        raise PefxError(f"policy '{name}' is not in catalog '{space.location}'", "unknown_policy")
    return checked(space, Policy, entry.value, name), entry


def stage_in(space: Keyspace, value: bytes | None, revision: Revision) -> Stage:
    """The stage of `revision`, where `value` is what is stored of it."""
    if value is None:
        return Stage(revision.policy, revision.number, "committed", revision.created)
    return checked(space, Stage, value, revision.key)


def number_of(space: Keyspace, policy: Policy, which: int | str | None) -> int:
    """The revision number that `which`, a number or an alias (None: the latest), means.

    PefxError kind "unknown_revision" where there is none; whether a number's record exists is not looked at.
    """
    alias = LATEST if which is None else which
    if isinstance(alias, str):
        if alias in policy.aliases:
            return policy.aliases[alias]
        if policy.head == 0:
            raise PefxError(f"policy '{policy.name}' has no revision yet", "unknown_revision")
        raise PefxError(
            f"policy '{policy.name}' has no alias '{alias}'; it has {', '.join(sorted(policy.aliases))}",
            "unknown_revision",
        )
    if isinstance(alias, bool) or not isinstance(alias, int) or not 0 < alias < 10**10:
        raise PefxError(
            f"policy '{policy.name}': revision {alias!r} is no revision number (1, 2, ...)", "unknown_revision"
        )
    return alias


def find_revision(space: Keyspace, policy: Policy, which: int | str | None) -> Revision:
    """A revision of `policy` by number or alias (None: the latest). PefxError kind "unknown_revision"."""
    number = number_of(space, policy, which)
    value = space.read(revision_key(policy.name, number)).value
    if value is None:
        if number <= policy.head:
            raise PefxError(
                f"policy '{policy.name}': revision {number} is not in catalog '{space.location}' any more: it was "
                "retired and collected",
                "unknown_revision",
            )
        latest = f"its latest is {policy.head}" if policy.head else "it has none yet"
        raise PefxError(f"policy '{policy.name}' has no revision {number}; {latest}", "unknown_revision")
    return checked(space, Revision, value, f"{policy.name}@{number}")


def check_alive(policy: Policy) -> None:
    """PefxError kind "retired" where `policy` may be neither served nor changed any more."""
    if policy.state == "retired":
        raise PefxError(f"policy '{policy.name}' is retired since {policy.changed}", "retired")
    if expired(policy):
        raise PefxError(f"policy '{policy.name}' expired at {policy.expires}", "retired")


def expired(policy: Policy) -> bool:
    """Whether its time is over."""
    return policy.expires is not None and datetime.fromisoformat(policy.expires) <= datetime.now(UTC)
