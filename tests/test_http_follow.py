"""Revisions that come while a server runs: prewarmed, exposed, or told to be unfit."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.http.follow import Follower
from pefx.http.tracks import Tracks
from pefx.store.catalog import Catalog
from pefx.store.lifecycle import give, retire, rollback, set_alias
from tests.http_fakes import FakeEngine, commit, live, served, small_catalog


class World:
    """A catalog, and a server's tables beside it, in which `ann` and `bob` are tracked."""

    def __init__(self, path: Path, poll: float = 60.0):
        self.catalog = small_catalog(path, "ann", "bob")
        self.given = served(FakeEngine(), self.catalog)
        assert self.given.readiness is not None
        self.tracks = Tracks(self.given.readiness, 10)
        for name in ("ann", "bob"):
            self.tracks.begin(self.catalog.get(name), None)
        self.follower = Follower(self.tracks, self.catalog, self.given.policies, poll)

    def now(self, policy: str = "ann") -> str:
        track = self.tracks.get(policy)
        assert track is not None
        return track.revision.key

    def look(self, until: str | None = None) -> None:
        """Look once; wait until `ann` is `until`."""
        self.follower.look()
        end = time.monotonic() + 10
        while until is not None and self.now() != until:
            assert time.monotonic() < end, self.now()
            time.sleep(0.005)

    def settle(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_new_revision_is_prewarmed_and_then_served(world: World) -> None:
    world.look()
    assert world.now() == "ann@1"
    two = commit(world.catalog, "ann", 7)
    assert world.tracks.ask("ann") != two
    world.look("ann@2")
    assert world.tracks.readiness.stage(two) == "exposed"
    assert world.now("bob") == "bob@1"
    world.look()
    assert world.now() == "ann@2"


def test_a_policy_nobody_asks_for_moves_without_its_weights(world: World) -> None:
    commit(world.catalog, "ann", 7)
    world.look("ann@2")
    three = commit(world.catalog, "ann", 8)
    world.look()
    assert world.now() == "ann@3"
    assert world.tracks.readiness.stage(three) == "committed"
    world.tracks.ask("ann")
    four = commit(world.catalog, "ann", 9)
    world.look("ann@4")
    assert world.tracks.readiness.stage(four) == "exposed"


def test_a_rollback_is_followed_and_other_aliases_are_not(world: World) -> None:
    commit(world.catalog, "ann", 7)
    world.look("ann@2")
    world.tracks.ask("ann")
    commit(world.catalog, "ann", 8)
    world.look("ann@3")
    set_alias(world.catalog, "ann", "prod", 1)
    world.look()
    assert world.now() == "ann@3"
    rollback(world.catalog, "ann")
    world.look()  # it is exposed still: at once
    assert world.now() == "ann@2"


def test_what_another_exposed_by_hand_stays_until_latest_moves(world: World) -> None:
    commit(world.catalog, "ann", 7)
    world.look("ann@2")
    one = world.catalog.get("ann", 1)
    world.tracks.register(one)
    world.tracks.readiness.prewarm(one).result(10)
    world.tracks.expose(one)
    world.look()
    assert world.now() == "ann@1"
    commit(world.catalog, "ann", 8)
    world.tracks.ask("ann")
    world.look("ann@3")


def test_a_revision_that_does_not_fit_is_told_once_and_the_one_before_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unfit(revision: Any) -> None:
        raise PefxError(f"revision {revision.key} has rank 99", "wrong_rank")

    commit(world.catalog, "ann", 7)
    monkeypatch.setattr(world.given.policies, "check", unfit)
    world.look()
    world.look()
    assert world.now() == "ann@1"
    assert caplog.text.count('the one before stays", "revision": "ann@1", "why": "revision ann@2 has rank 99') == 1


def test_damaged_weights_are_told_once_and_the_next_revision_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = world.catalog.load

    def damaged(revision: Any) -> dict[str, dict[str, np.ndarray]]:
        if revision.number == 2:
            raise PefxError(f"revision {revision.key} is damaged", "damaged")
        return load(revision)

    monkeypatch.setattr(world.catalog, "load", damaged)
    commit(world.catalog, "ann", 7)
    world.look()
    world.settle(lambda: "is damaged" in caplog.text)
    world.look()
    assert world.now() == "ann@1"
    assert caplog.text.count("is damaged") == 1
    commit(world.catalog, "ann", 8)
    world.look("ann@3")


def test_what_is_retired_or_gone_is_not_served_any_more(world: World, caplog: pytest.LogCaptureFixture) -> None:
    retire(world.catalog, "ann")
    world.look()
    assert world.tracks.get("ann") is None
    assert "retired" in caplog.text
    assert world.tracks.get("bob") is not None


def test_owners_are_followed(world: World) -> None:
    give(world.catalog, "ann", "lab")
    world.look()
    track = world.tracks.get("ann")
    assert track is not None
    assert track.owner == "lab"


def test_while_the_catalog_is_gone_all_stays_and_it_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(keys: Any) -> Any:
        raise PefxError("the disk is gone", "storage")

    commit(world.catalog, "ann", 7)
    with monkeypatch.context() as patch:
        patch.setattr(world.catalog.space, "read_many", gone)
        world.look()
        world.look()
        assert not world.follower.reachable
        assert world.now() == "ann@1"
    world.look("ann@2")
    assert world.follower.reachable
    assert caplog.text.count("cannot be read") == 1
    assert "can be read again" in caplog.text


def test_records_that_did_not_change_are_not_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.look()

    def called(*_: Any) -> None:
        raise AssertionError("nothing has changed")

    monkeypatch.setattr(world.follower, "_follow", called)
    world.look()


def test_in_a_server_that_runs(tmp_path: Path) -> None:
    catalog: Catalog = small_catalog(tmp_path, "ann")
    with live(catalog=catalog, poll=0.02) as server:
        assert server.complete(model="ann").json()["model"] == "ann@1"
        commit(catalog, "ann", 7)
        server.until(lambda: server.complete(model="ann").json()["model"] == "ann@2")
        assert server.complete(model="ann@1").json()["model"] == "ann@1"


def test_a_catalog_that_was_moved_away_is_gone_and_not_empty(world: World) -> None:
    place = Path(world.catalog.location)
    aside = place.rename(place.with_name("aside"))
    world.follower.look()
    assert (world.follower.reachable, world.now("ann"), world.now("bob")) == (False, "ann@1", "bob@1")
    aside.rename(place)
    commit(world.catalog, "ann", seed=5)
    world.look(until="ann@2")
    assert world.follower.reachable
