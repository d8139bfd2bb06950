"""A run's tenure of its policies: begun once, gone on with, ended, and lost to who came later."""

from pathlib import Path

from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.catalog import Catalog
from pefx.store.sessions import Wanted, find_session
from pefx.training.tenure import Tenure
from tests.store_small import BASE, SPEC, commit, fresh, refused


def wanted(*names: str) -> list[Wanted]:
    return [Wanted(name, BASE, SPEC) for name in names]


def state(catalog: Catalog, name: str) -> tuple[int, str, int, str | None]:
    session = find_session(catalog, catalog.policy(name))
    assert session is not None
    return session.number, session.state, session.step, session.checkpoint


def test_from_the_first_step_to_the_commit(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    tenure = Tenure(catalog, "runs/one")
    assert tenure.numbers == {}
    tenure.checkpointed(1)  # nothing was begun
    tenure.begin(wanted("ann", "bob"))
    tenure.begin(wanted("ann", "bob"))
    assert tenure.numbers == {"ann": 1, "bob": 1}
    tenure.checkpointed(5)
    assert state(catalog, "ann") == (1, "checkpointed", 5, "runs/one/checkpoints/5")
    again = Tenure(catalog, "runs/one")
    again.go_on(tenure.numbers)
    again.begin(wanted("ann", "bob"))
    assert again.numbers == tenure.numbers
    commit(catalog, "ann", session=again.numbers["ann"])
    again.end(10)
    assert state(catalog, "ann")[:3] == (1, "closed", 10)


def test_a_later_run_takes_over(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    first, second = Tenure(catalog, "runs/one"), Tenure(catalog, "runs/two")
    first.begin(wanted("ann"))
    second.begin(wanted("ann"))
    assert "runs/two" in refused("superseded", Tenure(catalog, "runs/one").go_on, first.numbers)
    refused("superseded", first.checkpointed, 5)
    second.checkpointed(5)


def test_another_catalog_or_none(tmp_path: Path) -> None:
    tenure = Tenure(fresh(tmp_path), "runs/one")
    tenure.begin(wanted("ann"))
    elsewhere = Tenure(fresh(tmp_path, "other"), "runs/one")
    elsewhere.go_on(tenure.numbers)
    elsewhere.begin(wanted("ann"))
    assert elsewhere.numbers == {"ann": 1}
    nowhere = Tenure(None, "runs/one")
    nowhere.go_on(tenure.numbers)
    nowhere.begin(wanted("ann"))
    nowhere.end(3)
    assert nowhere.numbers == {}


def test_a_catalog_that_knows_only_some_is_another_one(tmp_path: Path) -> None:
    """As one into which a slice was imported: everyone gets a session, or somebody else could commit beside."""
    catalog = fresh(tmp_path)
    tenure = Tenure(catalog, "runs/one")
    tenure.begin(wanted("ann", "bob"))
    export_tar(catalog, tmp_path / "ann.tar", Slice(prefix="ann"))
    other = fresh(tmp_path, "other")
    import_tar(other, tmp_path / "ann.tar")
    again = Tenure(other, "runs/one")
    again.go_on(tenure.numbers)
    again.begin(wanted("ann", "bob"))
    assert again.numbers == {"ann": 1, "bob": 1}
    assert state(other, "bob")[:2] == (1, "open")
