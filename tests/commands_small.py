"""What the tests of `pefx catalog` share: a catalog in the current directory, and a command that is run."""

from pathlib import Path

import pytest

from pefx.cli import main
from pefx.store.catalog import Catalog
from tests.store_small import commit, fresh


def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.chdir(tmp_path)
    catalog = fresh(tmp_path)
    for seed in range(3):
        commit(catalog, "ann", seed, step=seed)
    return catalog


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["catalog", words[0], "catalog", *words[1:]]) == code
    printed = capsys.readouterr()
    if code == 2:
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err
    return printed.out
