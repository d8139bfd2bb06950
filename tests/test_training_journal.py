"""Rows appear once, resumed or not."""

import json
from pathlib import Path

from pefx.training.journal import METRICS, Journal, read_rows


def fill(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.write(step, "train", "ann", loss=3.0 - 0.1 * step, tokens=64.0)
    journal.flush()


def test_a_resumed_journal_drops_lost_work_and_a_cut_line(tmp_path: Path) -> None:
    first = Journal(tmp_path, 0)
    fill(first, range(1, 8))
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 8, "ki')
    second = Journal(tmp_path, 5)
    fill(second, range(6, 10))
    second.close()
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == list(range(1, 10))
    for line in (tmp_path / METRICS).read_text().splitlines():
        assert set(json.loads(line)) == {"step", "kind", "name", "loss", "tokens"}
    assert len(list((tmp_path / "tensorboard").iterdir())) >= 1


def test_a_fresh_journal_forgets_an_older_run(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path, 0)
        fill(journal, range(1, 3))
        journal.close()
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [1, 2]
