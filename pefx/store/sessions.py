"""Sessions: who trains a policy. The newest session of a policy is the only one that may commit for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.commits import BATCH, check_fits, index_writes, labels
from pefx.store.encoding import encode
from pefx.store.keyspace import Write
from pefx.store.lifecycle import persist
from pefx.store.lookup import check_alive, checked, now
from pefx.store.names import check_name, policy_key, session_key
from pefx.store.records import SESSION_STATES, Policy, Session, SessionState


@dataclass(frozen=True)
class Wanted:
    """A session that a run wants: of `policy`, from the revision `start` (None: from a fresh adapter)."""

    policy: str
    base: str
    spec: AdapterSpec
    start: str | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()


def open_sessions(catalog: Catalog, run: str, wanted: Iterable[Wanted]) -> list[Session]:
    """A session for each of `wanted`; their policies are made where there are none.

    A run's own open session goes on; another run's is superseded: it can commit no more.

    PefxError kinds: "wrong_base", "wrong_spec", "retired", "bad_name".
    """
    todo = list(wanted)
    sessions: list[Session] = []
    for begin in range(0, len(todo), BATCH):
        some = todo[begin : begin + BATCH]
        sessions += persist(lambda some=some: _open(catalog, run, some))
    return sessions


def _open(catalog: Catalog, run: str, wanted: Sequence[Wanted]) -> list[Session]:
    space, time = catalog.space, now()
    for want in wanted:
        check_name(want.policy)
    entries = space.read_many([policy_key(want.policy) for want in wanted])
    sessions, writes = [], []
    for want, entry in zip(wanted, entries, strict=True):
        before = None if entry.value is None else checked(space, Policy, entry.value, want.policy)
        if before is not None:
            check_alive(before)
            check_fits(before, want.spec, want.base)
            current = find_session(catalog, before)
            if current is not None and current.run == run and current.state != "closed":
                sessions.append(current)
                continue
            after = replace(before, session=before.session + 1, changed=time, edits=before.edits + 1)
        else:
            after = _recorded(want, time)
        session = Session(want.policy, after.session, run, time, time, start=want.start)
        sessions.append(session)
        writes += [
            Write(session_key(session.policy, session.number), encode(session)),
            Write(policy_key(after.name), encode(after), entry.generation),
            *index_writes(before, after),
        ]
    if writes:
        space.transact(writes)
    return sessions


def _recorded(want: Wanted, time: str) -> Policy:
    return Policy(
        name=want.policy,
        base=want.base,
        spec=want.spec,
        head=0,
        head_hash="",
        created=time,
        changed=time,
        state="recorded",
        owner=want.owner,
        tags=labels(want.tags, want.owner),
        session=1,
    )


def find_session(catalog: Catalog, policy: Policy, number: int | None = None) -> Session | None:
    """A session of `policy`, its newest by default; None where there is none."""
    wanted = policy.session if number is None else number
    value = catalog.space.read(session_key(policy.name, wanted)).value
    return None if value is None else checked(catalog.space, Session, value, f"{policy.name}@{wanted}")


def move_sessions(
    catalog: Catalog, sessions: Iterable[Session], state: SessionState, step: int, checkpoint: str | None = None
) -> list[Session]:
    """Bring sessions to `state` at `step`, as `SESSION_STATES` allows; a checkpoint is where the run keeps it.

    PefxError kind "superseded" where a session is no longer its policy's newest, "wrong_state" for another step.
    """
    todo = list(sessions)
    moved: list[Session] = []
    for begin in range(0, len(todo), BATCH):
        some = todo[begin : begin + BATCH]
        moved += persist(lambda some=some: _move(catalog, some, state, step, checkpoint))
    return moved


def _move(
    catalog: Catalog, sessions: Sequence[Session], state: SessionState, step: int, checkpoint: str | None
) -> list[Session]:
    space = catalog.space
    entries = space.read_many([session_key(session.policy, session.number) for session in sessions])
    moved, writes = [], []
    for session, entry in zip(sessions, entries, strict=True):
        if entry.value is None:
            raise PefxError(f"session {session.key} is not in catalog '{catalog.location}'", "unknown_session")
        before = checked(space, Session, entry.value, session.key)
        newest = catalog.policy(session.policy).session
        if newest != session.number:
            raise PefxError(f"session {session.key} was superseded by session {newest} of its policy", "superseded")
        if state not in SESSION_STATES[before.state] and before.state != state:
            raise PefxError(f"session {session.key} is {before.state}, which '{state}' cannot follow", "wrong_state")
        after = replace(before, state=state, step=step, checkpoint=checkpoint or before.checkpoint, changed=now())
        moved.append(after)
        writes.append(Write(session_key(session.policy, session.number), encode(after), entry.generation))
    space.transact(writes)
    return moved
