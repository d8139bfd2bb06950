"""`pefx catalog`: a policy's life told in commands, each printing what it did."""

import json
from pathlib import Path

import pytest

from pefx.store.catalog import Catalog
from tests.commands_small import grown, run


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    return grown(tmp_path, monkeypatch)


def test_the_life_of_a_policy(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "alias", "ann@2", "prod") == "ann@prod is ann@2\n"
    assert run(capsys, "rollback", "ann") == "ann@latest is ann@2\n"
    assert run(capsys, "rollback", "ann", "--alias", "prod", "--to", "1") == "ann@prod is ann@1\n"
    assert run(capsys, "alias", "ann", "prod", "--drop") == "ann: no alias prod any more\n"
    assert run(capsys, "branch", "ann@3", "bob", "--owner", "team").startswith("bob@1 is ann@3  sha256:")
    told = run(capsys, "tag", "bob", "--add", "x", "y", "--expires", "3")
    assert told.startswith("bob: tags x, y; owner team; expires 20")
    assert run(capsys, "tag", "bob", "--remove", "x", "--owner", "", "--expires", "never") == (
        "bob: tags y; owner nobody; expires never\n"
    )
    assert run(capsys, "retire", "ann@1") == "ann@1 is retired\n"
    assert run(capsys, "gc", "--days", "0", "--dry-run") == "would remove 1 revisions and 1 blobs of 2.5 KB\n"
    assert run(capsys, "gc", "--days", "0", "--compact").startswith(
        "removed 1 revisions and 1 blobs of 2.5 KB\nrewritten"
    )
    assert run(capsys, "retire", "bob") == "bob is retired\n"
    assert run(capsys, "audit").endswith("catalog: no fault\n")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("tag", "ann", "--add", "x"), "tags", ["x"]),
        (("alias", "ann@1", "prod"), "aliases", {"latest": 3, "prod": 1}),
        (("rollback", "ann"), "aliases", {"latest": 2}),
        (("branch", "ann", "bob"), "parent", "ann@3"),
        (("retire", "ann"), "state", "retired"),
        (("retire", "ann@1"), "state", "retired"),
        (("gc", "--compact"), "revisions", 0),
    ],
)
def test_the_same_as_json(catalog: Catalog, capsys, words, field, value) -> None:
    assert json.loads(run(capsys, *words, "--json"))[field] == value
