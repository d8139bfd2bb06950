"""What happens to policies besides commits: by condition, decided anew after a rival, and only what may be."""

import itertools
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from pefx.errors import PefxError
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.garbage import collect
from pefx.store.lifecycle import (
    branch,
    drop_alias,
    expire,
    give,
    move_stage,
    retag,
    retire,
    retire_revision,
    rollback,
    set_alias,
)
from pefx.store.stages import STAGES, TRANSITIONS
from tests.store_small import bits, commit, everything, fresh, refused, rival_first


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = fresh(tmp_path)
    for seed in range(4):
        commit(catalog, "ann", seed)
    return catalog


@pytest.fixture(autouse=True)
def nothing_is_broken(catalog: Catalog):
    yield
    assert audit(catalog).faults == []


def test_aliases_and_rollback_copy_nothing(catalog: Catalog) -> None:
    blobs = catalog.space.keys("blob/", "blob0")
    assert set_alias(catalog, "ann", "prod", 3).aliases == {"latest": 4, "prod": 3}
    assert set_alias(catalog, "ann", "stable", "prod").aliases["stable"] == 3
    assert rollback(catalog, "ann", "prod").aliases["prod"] == 2
    assert rollback(catalog, "ann").aliases["latest"] == 3
    assert rollback(catalog, "ann", to=1).aliases["latest"] == 1
    assert catalog.get("ann").number == catalog.serving("ann").number == 1
    assert catalog.get("ann", "prod").number == 2
    assert catalog.space.keys("blob/", "blob0") == blobs
    assert "no revision before 1" in refused("unknown_revision", rollback, catalog, "ann")
    assert "is not older" in refused("unknown_revision", rollback, catalog, "ann", "prod", 2)
    refused("unknown_revision", set_alias, catalog, "ann", "x", 9)
    refused("bad_name", set_alias, catalog, "ann", "7", 1)
    commit(catalog, "ann", 9)
    assert catalog.policy("ann").aliases == {"latest": 5, "prod": 2, "stable": 3}
    assert drop_alias(catalog, "ann", "prod").aliases == {"latest": 5, "stable": 3}
    refused("unknown_revision", drop_alias, catalog, "ann", "prod")
    assert "roll it back" in refused("invalid_input", drop_alias, catalog, "ann", "latest")


def test_rollback_passes_over_what_is_retired(catalog: Catalog) -> None:
    retire_revision(catalog, "ann", 3)
    assert rollback(catalog, "ann").aliases["latest"] == 2
    refused("retired", set_alias, catalog, "ann", "prod", 3)
    refused("retired", catalog.serving, "ann", 3)
    assert catalog.get("ann", 3).number == 3


def test_tags_and_owners_can_be_searched(catalog: Catalog) -> None:
    commit(catalog, "bob", 1)
    assert retag(catalog, "ann", add=("x", "y")).tags == ("x", "y")
    retag(catalog, "bob", add=("y",))
    assert retag(catalog, "ann", add=("z",), remove=("x",)).tags == ("y", "z")
    assert [p.name for p in catalog.search(tag="y")] == ["ann", "bob"]
    assert catalog.search(tag="x") == []
    assert "has no tag 'x'; it has y, z" in refused("invalid_input", retag, catalog, "ann", (), ("x",))
    give(catalog, "ann", "team")
    assert [p.name for p in catalog.search(tag="y", owner="team")] == ["ann"]
    assert give(catalog, "ann", None).owner is None
    assert catalog.search(owner="team") == []
    before = everything(catalog)
    retag(catalog, "ann", add=("y",))  # nothing changes: nothing is written
    assert everything(catalog) == before


def test_time_to_live(catalog: Catalog) -> None:
    assert expire(catalog, "ann", datetime.now(UTC) + timedelta(hours=1)).expires is not None
    catalog.serving("ann")
    expire(catalog, "ann", datetime.now(UTC) - timedelta(seconds=1))
    assert "expired at" in refused("retired", catalog.serving, "ann")
    refused("retired", commit, catalog, "ann", 9)
    refused("retired", branch, catalog, "ann", "bob")
    assert catalog.get("ann").number == 4
    assert expire(catalog, "ann", None).expires is None
    catalog.serving("ann")
    assert "has no zone" in refused("invalid_input", expire, catalog, "ann", datetime(2027, 1, 1))


def test_a_retired_policy_is_over_for_good(catalog: Catalog) -> None:
    retire(catalog, "ann")
    for call, arguments in (
        (catalog.serving, ("ann",)),
        (commit, (catalog, "ann", 9)),
        (set_alias, (catalog, "ann", "prod", 1)),
        (rollback, (catalog, "ann")),
        (branch, (catalog, "ann", "bob")),
        (retire, (catalog, "ann")),
    ):
        refused("retired", call, *arguments)
    collect(catalog, timedelta(0))
    assert catalog.policy("ann").state == "retired"
    refused("retired", commit, catalog, "ann", 9)  # its name is not given again
    assert catalog.space.keys("blob/", "blob0") == []


def test_a_revision_that_an_alias_names_is_not_retired(catalog: Catalog) -> None:
    set_alias(catalog, "ann", "prod", 2)
    assert "alias 'prod' names" in refused("invalid_input", retire_revision, catalog, "ann", 2)
    assert "alias 'latest' names" in refused("invalid_input", retire_revision, catalog, "ann", 4)
    refused("unknown_revision", retire_revision, catalog, "ann", 9)
    refused("unknown_policy", retire_revision, catalog, "nobody", 1)
    assert retire_revision(catalog, "ann", 1).state == "retired"
    refused("wrong_stage", retire_revision, catalog, "ann", 1)


def test_every_step_of_the_stages_and_no_other(catalog: Catalog) -> None:
    reach = {
        "committed": (), "registered": ("register",), "prewarmed": ("register", "prewarm"),
        "exposed": ("register", "prewarm", "expose"), "retired": ("retire",),
    }  # fmt: skip
    for number, (stage, action) in enumerate(itertools.product(STAGES, TRANSITIONS), 5):
        revision = commit(catalog, "ann", number)
        for step in reach[stage]:
            move_stage(catalog, "ann", revision.number, step)
        assert catalog.stage(revision).state == stage
        if stage in TRANSITIONS[action].before:
            assert move_stage(catalog, "ann", revision.number, action).state == TRANSITIONS[action].after
        else:
            assert f"is {stage}" in refused("wrong_stage", move_stage, catalog, "ann", revision.number, action)
    set_alias(catalog, "ann", "latest", 4)  # the last one is retired


def test_a_branch_is_the_same_content_and_no_bytes(catalog: Catalog) -> None:
    blobs = catalog.space.keys("blob/", "blob0")
    made = branch(catalog, "ann", "bob", 2, owner="team")
    assert (made.key, made.parent, made.content_hash) == ("bob@1", "ann@2", catalog.get("ann", 2).content_hash)
    assert catalog.space.keys("blob/", "blob0") == blobs
    assert (catalog.policy("bob").origin, catalog.policy("bob").owner) == ("ann@2", "team")
    assert bits(catalog, made) == bits(catalog, catalog.get("ann", 2))
    commit(catalog, "bob", 7)
    again = branch(catalog, "bob", "carl", 1)
    assert again.blob == "blob/ann@0000000002"
    refused("name_taken", branch, catalog, "ann", "bob")
    refused("bad_name", branch, catalog, "ann", "../bob")
    refused("unknown_revision", branch, catalog, "ann", "dora", 9)
    retire(catalog, "ann")
    collect(catalog, timedelta(0))
    assert catalog.space.keys("blob/", "blob0") == ["blob/ann@0000000002", "blob/bob@0000000002"]
    assert bits(catalog, catalog.get("carl")) == bits(catalog, catalog.get("bob", 1))


def test_a_rival_in_between_is_no_loss(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = Catalog.open(catalog.location)
    rival_first(monkeypatch, lambda: retag(rival, "ann", add=("theirs",)))
    assert retag(catalog, "ann", add=("ours",)).tags == ("ours", "theirs")
    rival_first(monkeypatch, lambda: commit(rival, "ann", 9))
    assert set_alias(catalog, "ann", "prod", None).aliases == {"latest": 5, "prod": 5}
    rival_first(monkeypatch, lambda: set_alias(rival, "ann", "canary", 1))
    assert "alias 'canary' names" in refused("invalid_input", retire_revision, catalog, "ann", 1)
    rival_first(monkeypatch, lambda: branch(rival, "ann", "bob", 1))
    refused("name_taken", branch, catalog, "ann", "bob", 2)


def test_a_branch_from_what_is_collected_meanwhile_is_none(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = Catalog.open(catalog.location)

    def over() -> None:
        retire(rival, "ann")
        collect(rival, timedelta(0))

    rival_first(monkeypatch, over)
    with pytest.raises(PefxError) as caught:
        branch(catalog, "ann", "bob", 2)
    assert caught.value.kind == "retired"
    assert [p.name for p in catalog.search()] == ["ann"]


def test_equal_versions_do_not_deceive(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = Catalog.open(catalog.location)

    def there_and_back() -> None:
        set_alias(rival, "ann", "prod", 1)
        drop_alias(rival, "ann", "prod")

    seen: list[int] = []
    edits = catalog.policy("ann").edits
    rival_first(monkeypatch, there_and_back)
    seen.append(retag(catalog, "ann", add=("x",)).edits)
    assert seen == [edits + 3]


def test_times_out_of_all_years_are_told(catalog: Catalog) -> None:
    for at in (
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=14))),
    ):
        assert "out of the years" in refused("invalid_input", expire, catalog, "ann", at)
