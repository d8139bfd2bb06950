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
