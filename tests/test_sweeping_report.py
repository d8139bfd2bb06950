"""A sweep's table, picture and best cell, whole or not at all."""

import json
from dataclasses import replace

from pefx.config import Scaling
from pefx.sweeping.cells import Result, cells
from pefx.sweeping.intervals import interval
from pefx.sweeping.report import elsewhere, table, write
from tests.test_cells import CONFIG

VALUES = [(0.5 - index / 10, 0.6 - index / 10) for index in range(4)]
FOUND = [Result(cell, own, interval(own), 8) for cell, own in zip(cells(CONFIG), VALUES, strict=True)]


def test_a_row_for_each_cell_best_first():
    lines = table(FOUND, "reward").splitlines()
    assert lines[0] == "| adapter | learning rate | updates | reward |"
    assert lines[2] == "| lora-r1-a2 | 0.001 | 8 | 0.550 [0.500, 0.600] |"
    assert len(lines) == 2 + len(FOUND)
    alone = Result(FOUND[0].cell, (0.5,), None, 4)
    assert table([alone], "nats_per_token").splitlines()[2] == "| lora-r1-a2 | 0.001 | 4 | 0.500 |"


def test_a_record_is_told_at_other_ranks():
    record = replace(FOUND[0].cell.record, scaling=Scaling("by_root", "mu_a"))
    assert elsewhere(record, (1, 16)).splitlines() == [
        "by alpha 'by_root', rate 'mu_a':",
        "  rank 1: alpha 2, learning rate 0.001",
        "  rank 16: alpha 8, learning rate 0.0005",
    ]


def test_files_are_written(tmp_path):
    paths = write(FOUND, "reward", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["best.json", "sweep.md", "sweep.png"]
    best = json.loads(paths["best.json"].read_text())
    record = best["record"]
    assert (record["adapter"]["rank"], record["learning_rate"], best["values"]) == (1, 1e-3, [0.5, 0.6])
    assert record["scaling"] == {"alpha": "by_rank", "rate": "unchanged"}
    assert paths["sweep.png"].read_bytes().startswith(b"\x89PNG")
