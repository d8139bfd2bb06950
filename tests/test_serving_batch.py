"""pefx.serving.batch: a file of requests, good and bad, answered exactly once however often it is cut."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pefx import progress
from pefx.errors import PefxError
from pefx.serving import batch as batch_module
from pefx.serving import parquet
from pefx.serving.batch import Batch
from pefx.serving.engine import Engine
from pefx.serving.formats import read_fingerprint
from pefx.serving.journal import Journal
from pefx.serving.policies import Policies
from pefx.serving.progress import Reporter
from tests.serving_fakes import BASE, SPEC, FakeCatalog, FakeDevice, make_engine, revision

POLICIES = ["alice", "bob", "carol"]


def catalog() -> FakeCatalog:
    return FakeCatalog(*(revision(policy, number) for policy in POLICIES for number in (1, 2)))


class Cut(Exception):
    """Stands for SIGKILL: nothing of the process's memory reaches the disk after it."""


@pytest.fixture(autouse=True)
def _few_are_read_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_module, "LOOKAHEAD", 2)


class DyingDevice(FakeDevice):
    def __init__(self, steps: float):
        super().__init__(page_size=4)
        self.steps = steps

    def run(self, plan):
        self.steps -= 1
        if self.steps < 0:
            raise Cut
        self.plans.clear()
        return super().run(plan)


def start(requests: Path, out: Path, revisions: FakeCatalog, steps: float = float("inf"), sequences: int = 4) -> Batch:
    run = {"requests": read_fingerprint(requests)}
    with Journal(out, run) as journal:
        journal.start()
        engine = make_engine(revisions, DyingDevice(steps), sequences=sequences)
        reporter = Reporter("t", 1, journal.answered, Console(file=io.StringIO()))
        policies = Policies(revisions, BASE, SPEC)
        batch = Batch(requests, engine=engine, policies=policies, journal=journal, reporter=reporter)
        batch.run()
        journal.finish(batch.summary())
        return batch


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def mixed(count: int) -> list[Any]:
    policies = [None, *POLICIES, "nobody"]
    rows: list[Any] = [
        {
            "id": f"r{i}",
            "policy": policies[i % 5],
            "prompt": "x" * (1 + i % 9),
            "max_tokens": 1 + i % 7,
            "logprobs": True,
        }
        for i in range(count)
    ]
    rows[3], rows[10] = b"{broken", {"id": "r1", "prompt": "again"}
    return rows


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def test_every_line_is_answered_in_its_place(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", [*mixed(40), b"", {"id": "last", "prompt": "x"}])
    batch = start(requests, tmp_path / "out", catalog())
    rows = read(tmp_path / "out")
    assert len(rows) == 41
    assert batch.counts.answers == 41
    for i, row in enumerate(rows[:40]):
        if i == 3:
            assert row["id"] is None
            assert "in.jsonl line 4: broken JSON" in row["error"]["message"]
        elif i == 10:
            assert (row["id"], row["error"]["type"]) == ("r1", "duplicate_id")
            assert "line 11" in row["error"]["message"]
        elif i % 5 == 4:
            assert row["error"]["type"] == "unknown_policy"
            assert "'nobody'" in row["error"]["message"]
        else:
            assert (row["id"], row["policy"]) == (f"r{i}", [None, *POLICIES][i % 5])
            assert row["revision"] == (None if i % 5 == 0 else 2)
    assert rows[40]["id"] == "last"


def test_cut_at_every_step_gives_the_same_bytes(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", mixed(30))
    steps = start(requests, tmp_path / "whole", catalog()).counts.steps
    wanted = (tmp_path / "whole").read_bytes()
    for cut in range(0, steps, 3):
        out = tmp_path / f"out{cut}"
        with pytest.raises(Cut):
            start(requests, out, catalog(), steps=cut)
        assert not out.exists()
        start(requests, out, catalog())
        assert out.read_bytes() == wanted


def test_many_cuts_of_one_run_make_progress(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", mixed(40))
    start(requests, tmp_path / "whole", catalog())
    for _ in range(100):
        try:
            start(requests, tmp_path / "out", catalog(), steps=9, sequences=3)
            break
        except Cut:
            continue
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_latest_is_what_it_was_when_the_run_began(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", mixed(40))
    revisions = catalog()
    start(requests, tmp_path / "whole", catalog())
    with pytest.raises(Cut):
        start(requests, tmp_path / "out", revisions, steps=12)
    for policy in [*POLICIES, "nobody"]:
        revisions.revisions[policy, 3] = revision(policy, 3)
    start(requests, tmp_path / "out", revisions)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("loss", ["replaced", "removed"])
def test_catalog_that_lost_a_promised_revision_stops_the_run(tmp_path: Path, loss: str):
    requests = write(tmp_path / "in.jsonl", [{"id": str(i), "policy": "alice", "prompt": "x"} for i in range(20)])
    revisions = catalog()
    with pytest.raises(Cut):
        start(requests, tmp_path / "out", revisions, steps=3)
    if loss == "removed":
        del revisions.revisions["alice", 2]
    else:
        revisions.revisions["alice", 2] = revision("alice", 2, content_hash="sha256:other")
    with pytest.raises(PefxError, match="this run began with revision alice@2"):
        start(requests, tmp_path / "out", revisions)


def test_catalog_out_of_reach_is_no_answer(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", [{"id": "a", "policy": "alice", "prompt": "x"}])
    revisions = catalog()
    revisions.gone = True
    with pytest.raises(PefxError, match="cannot be read"):
        start(requests, tmp_path / "out", revisions)
    revisions.gone = False
    start(requests, tmp_path / "out", revisions)
    assert read(tmp_path / "out")[0]["revision"] == 2


def test_id_of_a_bad_line_is_taken(tmp_path: Path):
    """A row for an id means one line: the second with that id is refused even if the first was bad."""
    requests = write(tmp_path / "in.jsonl", [{"id": "a", "prompt": ""}, {"id": "a", "prompt": "x"}])
    start(requests, tmp_path / "out", catalog())
    assert [row["error"]["type"] for row in read(tmp_path / "out")] == ["invalid_request", "duplicate_id"]


def test_bad_lines_alone_are_a_run_too(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", [b"x"] * 50)
    start(requests, tmp_path / "out", catalog())
    assert len(read(tmp_path / "out")) == 50


def as_parquet(lines: Path, table: Path) -> Path:
    """The rows of a JSONL file of requests."""
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines.read_text().splitlines()]), table)
    return table


def test_parquet_in_and_out_is_the_same_run_however_often_cut(tmp_path: Path):
    rows = [row for row in mixed(40) if isinstance(row, dict)]
    lines = write(tmp_path / "in.jsonl", rows)
    table = as_parquet(lines, tmp_path / "in.parquet")
    start(lines, tmp_path / "out.jsonl", catalog())
    start(table, tmp_path / "whole.parquet", catalog())
    for requests, out in ((lines, tmp_path / "a.parquet"), (table, tmp_path / "b.parquet")):
        for _ in range(100):
            try:
                start(requests, out, catalog(), steps=9)
                break
            except Cut:
                assert not out.exists()
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    wanted = read(tmp_path / "out.jsonl")
    for name, word in (("a.parquet", "line"), ("b.parquet", "row")):
        found = pq.read_table(tmp_path / name).to_pylist()
        assert [row["tokens"] for row in found] == [row.get("tokens") for row in wanted]
        errors = [(row["id"], row["error"]["type"], row["error"]["message"]) for row in found if row["error"]]
        assert errors == [
            (
                row["id"],
                row["error"]["type"],
                row["error"]["message"].replace("jsonl line", f"{requests_name(name)} {word}"),
            )
            for row in wanted
            if "error" in row
        ]


def requests_name(out: str) -> str:
    return {"a.parquet": "jsonl", "b.parquet": "parquet"}[out]


def test_no_more_are_read_ahead_than_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    requests = write(tmp_path / "in.jsonl", [{"id": str(i), "prompt": "x"} for i in range(50)])
    most, submit = 0, Engine.submit

    def counted(engine: Engine, *arguments: Any) -> Any:
        nonlocal most
        found = submit(engine, *arguments)
        most = max(most, engine.waiting)
        return found

    monkeypatch.setattr(Engine, "submit", counted)
    start(requests, tmp_path / "out", catalog(), sequences=4)
    assert most == 2 * 4


def test_summary_is_of_all_starts(tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", mixed(40))
    starts = 0
    for _ in range(100):
        starts += 1
        try:
            start(requests, tmp_path / "out", catalog(), steps=9)
            break
        except Cut:
            continue
    summary, rows = json.loads((tmp_path / "out.summary.json").read_text()), read(tmp_path / "out")
    assert summary["requests"] == len(rows) == 40
    assert 1 < summary["starts"] <= starts
    kinds = [row["error"]["type"] for row in rows if "error" in row]
    assert summary["errors"] == {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    assert summary["generated_tokens"] == sum(len(row.get("tokens", ())) for row in rows)
    assert summary["adapters"] == len(POLICIES)
    assert 0 < summary["first_token_seconds"]["p50"] <= summary["request_seconds"]["max"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_grows_by_ids_alone(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch):
    """An input of 4 MB more takes less than 1 MB more: ids, places in the log, and tables that happen to grow."""
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    monkeypatch.setattr(progress, "LINE_SECONDS", float("inf"))  # the first line loads tables of a few MB
    peaks = []  # the first has what is made once
    for count in (50, 300, 800):
        rows = [{"id": f"r{i}", "prompt": "x", "max_tokens": 1, "stop": [f"{i:8000}"]} for i in range(count)]
        requests = write(tmp_path / f"in{count}.jsonl", rows)
        if ending == "parquet":
            table = pa.Table.from_pylist(rows)
            pq.write_table(table, requests.with_suffix(".parquet"), row_group_size=200)
            requests = requests.with_suffix(".parquet")
            del table
        del rows
        tracemalloc.start()
        batch = start(requests, tmp_path / f"out{count}.{ending}", catalog())
        assert batch.summary()["errors"] == {}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1e6, peaks
