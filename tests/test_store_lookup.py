"""Single records: found, checked to be the ones asked for, and told apart where they are missing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pefx.store.keyspace import Write
from pefx.store.lifecycle import retire
from pefx.store.lookup import check_alive, expired, find_policy, find_revision, number_of
from tests.store_small import commit, fresh, refused


def test_numbers_and_aliases(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    first, second = commit(catalog, "ann", 1), commit(catalog, "ann", 2)
    policy = find_policy(catalog.space, "ann")
    assert find_revision(catalog.space, policy, None) == find_revision(catalog.space, policy, "latest") == second
    assert find_revision(catalog.space, policy, 1) == first
    assert "it has latest" in refused("unknown_revision", number_of, catalog.space, policy, "prod")
    assert "its latest is 2" in refused("unknown_revision", find_revision, catalog.space, policy, 3)
    for odd in (0, -1, True, 10**10):
        refused("unknown_revision", number_of, catalog.space, policy, odd)
    empty = replace(policy, head=0, aliases={})
    assert "no revision yet" in refused("unknown_revision", number_of, catalog.space, empty, None)
    catalog.space.transact([Write("revision/ann@0000000001", None)])
    assert "retired and collected" in refused("unknown_revision", find_revision, catalog.space, policy, 1)


def test_what_is_over(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    commit(catalog, "ann")
    policy = catalog.policy("ann")
    soon, past = (datetime.now(UTC) + timedelta(minutes=sign) for sign in (5, -5))
    assert not expired(replace(policy, expires=soon.isoformat()))
    assert expired(replace(policy, expires=past.isoformat()))
    check_alive(policy)
    assert "expired at" in refused("retired", check_alive, replace(policy, expires=past.isoformat()))
    assert "is retired since" in refused("retired", check_alive, retire(catalog, "ann"))
