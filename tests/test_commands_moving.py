"""Commands that carry policies out and in; those of PEFT directories are with `tests/test_exchange.py`."""

import json
from pathlib import Path

import pytest

from pefx.cli import main
from pefx.store.catalog import Catalog
from tests.commands_small import grown, run
from tests.store_small import commit


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    return grown(tmp_path, monkeypatch)


def test_out_and_in(catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "export", "all.tar").startswith("all.tar: 1 policies, ")
    assert main(["catalog", "import", "other", "all.tar"]) == 0
    assert capsys.readouterr().out == "1 policies with 3 revisions; 0 were there already\n"
    commit(Catalog.open(tmp_path / "other"), "ann", 9)
    assert main(["catalog", "import", "other", "all.tar"]) == 2
    assert "refused: policy 'ann'" in capsys.readouterr().err
    assert json.loads(run(capsys, "export", "again.tar", "--json"))["policies"] == 1
    assert "exists" in run(capsys, "export", "all.tar", code=2)
    assert "no such file" in run(capsys, "import", "none.tar", code=2)


def test_no_catalog_is_made_for_what_is_no_archive(catalog: Catalog, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.tar").write_text("no tar file at all\n" * 100)
    for file, told in (("text.tar", "is no tar file"), ("catalog", "no such file"), ("none.tar", "no such file")):
        assert main(["catalog", "import", "new", file]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert told in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert not (tmp_path / "new").exists()


def test_a_refused_policy_leaves_the_others(catalog: Catalog, tmp_path: Path, capsys) -> None:
    commit(catalog, "bob", 7)
    run(capsys, "export", "all.tar")
    commit(Catalog.open(tmp_path / "other", create=True), "ann", 9)
    assert main(["catalog", "import", "other", "all.tar", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["policies"] == 1
    assert printed.err.splitlines() == [f"error: refused: {told}" for told in json.loads(printed.out)["refused"]]
    assert list(Catalog.open(tmp_path / "other").policies()) == ["ann", "bob"]
