"""Sessions: the newest is the only one that commits; a run goes on with its own; steps of a session in order."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from pefx.store import sessions
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.lifecycle import retire
from pefx.store.records import SESSION_STATES
from pefx.store.sessions import Wanted, find_session, move_sessions, open_sessions
from tests.store_small import BASE, OTHER_BASE, SPEC, commit, fresh, refused, rival_first


def wanted(*names: str) -> list[Wanted]:
    return [Wanted(name, BASE, SPEC) for name in names]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return fresh(tmp_path)


def test_a_session_makes_its_policy_which_has_no_revision_yet(catalog: Catalog) -> None:
    (session,) = open_sessions(catalog, "run", [Wanted("ann", BASE, SPEC, owner="team", tags=("x",))])
    assert (session.number, session.state, session.run) == (1, "open", "run")
    policy = catalog.policy("ann")
    assert (policy.state, policy.head, policy.aliases, policy.owner) == ("recorded", 0, {}, "team")
    assert "no revision yet" in refused("unknown_revision", catalog.serving, "ann")
    assert catalog.log("ann") == []
    first = commit(catalog, "ann", session=1)
    assert (first.number, first.session, catalog.policy("ann").state) == (1, 1, "active")
    assert [p.name for p in catalog.search(tag="x", owner="team")] == ["ann"]
    assert audit(catalog).faults == []


def test_who_came_later_commits(catalog: Catalog) -> None:
    (first,) = open_sessions(catalog, "old run", wanted("ann"))
    assert open_sessions(catalog, "old run", wanted("ann")) == [first]
    (second,) = open_sessions(catalog, "new run", wanted("ann"))
    assert (second.number, second.run) == (2, "new run")
    told = refused("superseded", commit, catalog, "ann", session=first.number)
    assert "session 1 was superseded by session 2" in told
    refused("superseded", move_sessions, catalog, [first], "closed", 5)
    assert commit(catalog, "ann", session=2).number == 1
    assert commit(catalog, "ann", 2).session == 0  # an import, say
    assert find_session(catalog, catalog.policy("ann"), 1) == first


def test_states_follow_each_other(catalog: Catalog) -> None:
    opened = open_sessions(catalog, "run", wanted("ann", "bob"))
    moved = move_sessions(catalog, opened, "checkpointed", 10, "run/checkpoints/10")
    assert [(s.state, s.step, s.checkpoint) for s in moved] == [("checkpointed", 10, "run/checkpoints/10")] * 2
    moved = move_sessions(catalog, moved, "checkpointed", 20, "run/checkpoints/20")
    assert open_sessions(catalog, "run", wanted("ann", "bob")) == moved
    closed = move_sessions(catalog, moved, "closed", 30)
    assert [(s.state, s.step, s.checkpoint) for s in closed] == [("closed", 30, "run/checkpoints/20")] * 2
    assert "is closed" in refused("wrong_state", move_sessions, catalog, closed, "checkpointed", 40)
    assert move_sessions(catalog, closed, "closed", 30)  # said twice
    (again,) = open_sessions(catalog, "run", wanted("ann"))
    assert (again.number, again.state) == (2, "open")


def test_what_does_not_fit_opens_nothing(catalog: Catalog) -> None:
    commit(catalog, "ann")
    commit(catalog, "gone")
    retire(catalog, "gone")
    for kind, want in (
        ("wrong_base", Wanted("ann", OTHER_BASE, SPEC)),
        ("retired", Wanted("gone", BASE, SPEC)),
        ("bad_name", Wanted("../x", BASE, SPEC)),
    ):
        refused(kind, open_sessions, catalog, "run", [*wanted("new"), want])
    assert list(catalog.policies()) == ["ann", "gone"]
    assert catalog.policy("ann").session == 0


def test_thousands_in_a_transaction(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BATCH", 4)
    names = [f"u{i:02}" for i in range(11)]
    opened = open_sessions(catalog, "run", wanted(*names))
    assert [s.policy for s in opened] == names
    assert all(s.state == "closed" for s in move_sessions(catalog, opened, "closed", 1))
    assert audit(catalog).faults == []


def test_every_step_of_a_session_and_no_other(catalog: Catalog) -> None:
    reach = {"open": (), "checkpointed": ("checkpointed",), "closed": ("closed",)}
    for before, after in itertools.product(SESSION_STATES, SESSION_STATES):
        name = f"{before}-{after}"
        opened = open_sessions(catalog, "run", wanted(name))
        for step in reach[before]:
            opened = move_sessions(catalog, opened, step, 1)
        if after in SESSION_STATES[before] or after == before:  # said twice
            assert [s.state for s in move_sessions(catalog, opened, after, 2)] == [after]
        else:
            told = refused("wrong_state", move_sessions, catalog, opened, after, 2)
            assert f"session {name}@1 is {before}, which '{after}' cannot follow" in told
            assert find_session(catalog, catalog.policy(name)) == opened[0]


def test_a_move_that_one_session_refuses_moves_none(catalog: Catalog) -> None:
    opened = open_sessions(catalog, "run", wanted("ann", "bob"))
    open_sessions(catalog, "later", wanted("bob"))
    assert "bob@1" in refused("superseded", move_sessions, catalog, opened, "checkpointed", 5)
    assert find_session(catalog, catalog.policy("ann")) == opened[0]
    refused("unknown_session", move_sessions, catalog, [replace(opened[0], number=9)], "closed", 5)


def test_two_runs_that_open_at_once_get_one_each(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    rival, first = Catalog.open(catalog.location), []
    rival_first(monkeypatch, lambda: first.extend(open_sessions(rival, "theirs", wanted("ann"))))
    (ours,) = open_sessions(catalog, "ours", wanted("ann"))
    assert (first[0].number, ours.number) == (1, 2)
    assert "session 1 was superseded by session 2" in refused("superseded", commit, catalog, "ann", session=1)
