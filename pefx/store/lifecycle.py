"""What happens to a policy besides commits. Each transition is one transaction, conditioned on what it was decided on.

A rival's change in between is no error: the transition is decided again on what is there then.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.commits import code_version, index_writes, labels
from pefx.store.encoding import encode
from pefx.store.keyspace import ABSENT, Keyspace, Write
from pefx.store.lookup import check_alive, find_revision, now, number_of, read_policy, stage_in
from pefx.store.names import check_alias, check_label, check_name, policy_key, revision_key, stage_key
from pefx.store.records import LATEST, POLICY_STATES, Policy, Revision, Stage
from pefx.store.stages import Action, next_stage

ATTEMPTS = 100  # against rivals; each loses only to one that succeeded

Result = TypeVar("Result")


def persist(attempt: Callable[[], Result]) -> Result:
    """`attempt`, again where another writer was first. PefxError kind "conflict" when it never gets its turn."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except PefxError as error:
            if error.kind != "conflict":
                raise
    return attempt()


def edit(space: Keyspace, name: str, change: Callable[[Policy], Policy]) -> Policy:
    """The policy `name` after `change`; nothing is written where it changes nothing."""

    def attempt() -> Policy:
        before, entry = read_policy(space, name)
        after = change(before)
        if after != before:
            after = replace(after, changed=now(), edits=before.edits + 1)
            written = Write(policy_key(name), encode(after), entry.generation)
            space.transact([written, *index_writes(before, after)])
        return after

    return persist(attempt)


def set_alias(catalog: Catalog, policy: str, alias: str, which: int | str | None = None) -> Policy:
    """Let `alias` name a revision of `policy` (by number or alias; None: the latest), which must be usable."""
    check_alias(alias)

    def change(before: Policy) -> Policy:
        check_alive(before)
        number = _usable(catalog, before, which)
        return replace(before, aliases={**before.aliases, alias: number})

    return edit(catalog.space, policy, change)


def drop_alias(catalog: Catalog, policy: str, alias: str) -> Policy:
    """Forget `alias`. PefxError for `latest`, and kind "unknown_revision" where there is no such alias."""

    def change(before: Policy) -> Policy:
        number_of(catalog.space, before, alias)
        if alias == LATEST:
            raise PefxError(f"policy '{policy}': alias '{LATEST}' cannot be dropped; roll it back to move it")
        return replace(before, aliases={name: n for name, n in before.aliases.items() if name != alias})

    return edit(catalog.space, policy, change)


def rollback(catalog: Catalog, policy: str, alias: str = LATEST, to: int | None = None) -> Policy:
    """Let `alias` name an older revision: `to`, or the newest usable one before that which it names now.

    Nothing is copied and nothing removed; the next commit moves `latest` on. PefxError kind "unknown_revision" where
    there is no older one.
    """

    def change(before: Policy) -> Policy:
        check_alive(before)
        current = number_of(catalog.space, before, alias)
        if to is not None and to >= current:
            raise PefxError(
                f"policy '{policy}': revision {to} is not older than {current}, which '{alias}' names",
                "unknown_revision",
            )
        number = _usable(catalog, before, to) if to is not None else _newest_before(catalog, before, current, alias)
        return replace(before, aliases={**before.aliases, alias: number})

    return edit(catalog.space, policy, change)


def _newest_before(catalog: Catalog, policy: Policy, current: int, alias: str) -> int:
    for number in range(current - 1, 0, -1):
        try:
            return _usable(catalog, policy, number)
        except PefxError as error:
            if error.kind not in ("unknown_revision", "retired"):
                raise
    raise PefxError(
        f"policy '{policy.name}' has no revision before {current}, which '{alias}' names", "unknown_revision"
    )


def _usable(catalog: Catalog, policy: Policy, which: int | str | None) -> int:
    revision = find_revision(catalog.space, policy, which)
    if catalog.stage(revision).state == "retired":
        raise PefxError(f"revision {revision.key} is retired", "retired")
    return revision.number


def retag(catalog: Catalog, policy: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Policy:
    """Add and remove tags. PefxError for a tag to remove that is not there."""
    added, removed = tuple(add), set(remove)

    def change(before: Policy) -> Policy:
        if missing := sorted(removed - set(before.tags)):
            raise PefxError(f"policy '{policy}' has no tag '{missing[0]}'; it has {', '.join(before.tags) or 'none'}")
        return replace(before, tags=labels((*(tag for tag in before.tags if tag not in removed), *added), None))

    return edit(catalog.space, policy, change)


def give(catalog: Catalog, policy: str, owner: str | None) -> Policy:
    """Make `owner` (None: nobody) the owner."""
    if owner is not None:
        check_label("owner", owner)
    return edit(catalog.space, policy, lambda before: replace(before, owner=owner))


def expire(catalog: Catalog, policy: str, at: datetime | None) -> Policy:
    """Serve and train `policy` until `at`, a time with its zone (None: for ever)."""
    if at is not None and at.tzinfo is None:
        raise PefxError(f"policy '{policy}': the time {at.isoformat()} has no zone; add one, as in +00:00")
    try:
        text = None if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
    except OverflowError as error:
        raise PefxError(f"policy '{policy}': the time {at} is out of the years 1 to 9999") from error
    return edit(catalog.space, policy, lambda before: replace(before, expires=text))


def retire(catalog: Catalog, policy: str) -> Policy:
    """Serve and train `policy` no more, for good. Its name stays taken; garbage collection removes its weights."""

    def change(before: Policy) -> Policy:
        if "retired" not in POLICY_STATES[before.state]:
            check_alive(before)
        return replace(before, state="retired")

    return edit(catalog.space, policy, change)


def retire_revision(catalog: Catalog, policy: str, number: int) -> Stage:
    """Serve one revision no more, for good. PefxError where an alias still names it: move that first."""

    def attempt() -> Stage:
        record, entry = read_policy(catalog.space, policy)
        named = sorted(alias for alias, n in record.aliases.items() if n == number)
        if named:
            raise PefxError(f"revision {policy}@{number} is what alias '{named[0]}' names; move that first")
        # The policy is written with it, so that an alias that comes to name the revision meanwhile is noticed.
        touched = replace(record, edits=record.edits + 1, changed=now())
        beside = [Write(policy_key(policy), encode(touched), entry.generation)]
        return _move_stage(catalog, policy, number, "retire", beside)

    return persist(attempt)


def move_stage(catalog: Catalog, policy: str, which: int | str | None, action: Action) -> Stage:
    """Bring a revision to the stage that `action` leads to. PefxError kind "wrong_stage" where it may not.

    Writing is conditioned on the stage it was in: of two rivals one succeeds, the other decides anew.
    """
    return persist(lambda: _move_stage(catalog, policy, which, action, []))


def _move_stage(
    catalog: Catalog, policy: str, which: int | str | None, action: Action, beside: Iterable[Write]
) -> Stage:
    space = catalog.space
    revision = catalog.get(policy, which)
    own, key = revision_key(revision.policy, revision.number), stage_key(revision.policy, revision.number)
    there, entry = space.read_many([own, key])
    before = stage_in(space, entry.value, revision)
    after = Stage(revision.policy, revision.number, next_stage(action, before.state, revision.key), now())
    # The revision is written again as it is: were it collected meanwhile, a stage of nothing would be left.
    kept = Write(own, there.value, there.generation)
    space.transact([kept, Write(key, encode(after), entry.generation), *beside])
    return after


def branch(
    catalog: Catalog, source: str, name: str, which: int | str | None = None, owner: str | None = None
) -> Revision:
    """A new policy `name` whose first revision is one of `source`: same content and hash, no bytes copied.

    PefxError kind "name_taken" where there is a policy of that name.
    """
    check_name(name)
    space = catalog.space

    def attempt() -> Revision:
        entry = space.read(policy_key(name))
        if entry.value is not None:
            raise PefxError(f"policy '{name}' is there already: a branch is a new policy", "name_taken")
        origin = catalog.serving(source, which)
        origin_key = revision_key(origin.policy, origin.number)
        time = now()
        revision = replace(
            origin, policy=name, number=1, parent=origin.key, created=time, code_version=code_version(), session=0
        )
        policy = Policy(
            name=name,
            base=origin.base,
            spec=origin.spec,
            head=1,
            head_hash=origin.content_hash,
            created=time,
            changed=time,
            owner=owner,
            tags=labels((), owner),
            aliases={LATEST: 1},
            origin=origin.key,
        )
        there = space.read(origin_key)
        space.transact(
            [
                # written again as it is: were it collected meanwhile, so might its bytes be
                Write(origin_key, there.value, there.generation),
                Write(revision_key(name, 1), encode(revision), ABSENT),
                Write(policy_key(name), encode(policy), entry.generation),
                *index_writes(None, policy),
            ]
        )
        return revision

    return persist(attempt)
