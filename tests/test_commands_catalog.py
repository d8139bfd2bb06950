"""All commands of a catalog: bad input is one line, and changes nothing."""

from pathlib import Path

import pytest

from pefx.store.catalog import Catalog
from tests.commands_small import grown, run


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    return grown(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("show", "nobody"), "policy 'nobody' is not in catalog"),
        (("show", "ann@9"), "has no revision 9"),
        (("show", "../x"), "is not allowed"),
        (("show", "ann@a b"), "after '@' comes"),
        (("ls", "--limit", "2000000"), "a page has 1 to 10000"),
        (("ls", "--tag", "a/b"), "tag 'a/b' is not allowed"),
        (("alias", "ann", "7"), "a number after '@' is a revision"),
        (("rollback", "ann", "--to", "3"), "is not older"),
        (("branch", "ann", "ann"), "is there already"),
        (("tag", "ann", "--remove", "x"), "has no tag 'x'"),
        (("tag", "ann", "--expires", "soon"), "neither a number of days, nor a time"),
        (("tag", "ann", "--add", "x", "--expires", "2027-01-01"), "has no zone"),
        (
            ("tag", "ann", "--add", "x", "--expires", "0001-01-01T00:00:00+14:00"),
            "neither a number of days, nor a time",
        ),
        (("tag", "ann", "--add", "x", "--owner", "a b"), "owner 'a b' is not allowed"),
        (("tag", "ann", "--add", "x", "a/b"), "tag 'a/b' is not allowed"),
        (("gc", "--days", "nan"), "--days nan is none of 0 to 100,000"),
        (("gc", "--days", "-1"), "--days -1.0 is none of"),
        (("gc", "--days", "1e12"), "is none of"),
        (("ls", "--prefix", "\udcff"), "is in no name"),
        (("show", "ann@²"), "after '@' comes"),
        (("audit", "--jsonl"), "unrecognized options"),
        (("log", "ann@1"), "is not allowed"),
        (("retire", "ann@3"), "alias 'latest' names"),
        (("diff", "ann@1", "bob"), "policy 'bob' is not in catalog"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(catalog, capsys, words, told) -> None:
    before = catalog.policy("ann")
    assert told in run(capsys, *words, code=2)
    assert catalog.policy("ann") == before


@pytest.mark.parametrize("command", ["ls", "audit", "stats", "gc"])
def test_no_catalog(tmp_path: Path, monkeypatch, capsys, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in run(capsys, command, code=2)
    assert list(tmp_path.iterdir()) == []
