"""Law 8, visible means complete: a killed writer leaves nothing partial, and nothing it acknowledged is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog, Provenance
from pefx.store.keyspace import Commit, Keyspace, Write
from pefx.store.records import Revision

ROOT = Path(__file__).resolve().parents[2]
SPEC = AdapterSpec(rank=4, targets=("q_proj",))
ROUNDS, WRITERS = 5, 3

WRITER = """
import sys
import numpy as np
from pefx.config import AdapterSpec
from pefx.store.catalog import Catalog
place, policy, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
catalog = Catalog.open(place, create=True)
spec = AdapterSpec(rank=4, targets=("q_proj",))
rng = np.random.default_rng(seed)
while True:
    adapter = {"q_proj": {f: rng.normal(size=(4, 4, 192)).astype(np.float32) for f in "ab"}}
    total = float(sum(x.sum() for x in adapter["q_proj"].values()))
    done = catalog.commit(policy, adapter=adapter, spec=spec, base="sha256:0", step=0, seeds={"run": seed}, config={},
                          data_fingerprint="", metrics={"total": total})
    print(done.number, done.content_hash, flush=True)
"""


def commit(catalog: Catalog, value: float) -> Revision:
    adapter = {"q_proj": {factor: np.full((4, 4, 192), value, np.float32) for factor in "ab"}}
    about: Provenance = {"step": 0, "seeds": {"run": 0}, "config": {}, "data_fingerprint": "", "metrics": {}}
    return catalog.commit("user0", adapter=adapter, spec=SPEC, base="sha256:0", **about)


def killed_writer_lines(place: Path, round: int, rng: random.Random) -> list[list[str]]:
    """Run one writer per policy at once, SIGKILL each at its own instant, and return the lines each printed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    printed = [place.parent / f"acknowledged-{round}-{i}" for i in range(WRITERS)]
    with ExitStack() as cleanup:
        writers = []
        for i, file in enumerate(printed):
            out = cleanup.enter_context(file.open("wb"))
            command = [sys.executable, "-c", WRITER, str(place), f"user{i}", str(round * WRITERS + i)]
            writers.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=out))
            cleanup.callback(writers[-1].wait)
            cleanup.callback(writers[-1].kill)
        for writer, file in zip(writers, printed, strict=True):
            limit = time.monotonic() + 60
            while file.stat().st_size == 0 and writer.poll() is None and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(timeout=60) == -signal.SIGKILL, "the writer ended by itself"
    # a last line without its newline was cut while it was printed: its commit may count, its text does not
    lines = [file.read_text().splitlines(keepends=True) for file in printed]
    return [[line for line in one if line.endswith("\n")] for one in lines]


def test_killed_writers_leave_only_whole_revisions(tmp_path: Path) -> None:
    place, rng = tmp_path / "catalog", random.Random(8)
    promised: dict[str, dict[int, str]] = {f"user{i}": {} for i in range(WRITERS)}
    commits = 0
    for round in range(ROUNDS):
        for i, lines in enumerate(killed_writer_lines(place, round, rng)):
            commits += len(lines)
            for line in lines:
                number, content = line.split()
                assert int(number) not in promised[f"user{i}"]
                promised[f"user{i}"][int(number)] = content
        catalog = Catalog.open(place)
        for policy, revisions in promised.items():
            log = catalog.log(policy)
            head = catalog.policy(policy)
            assert [revision.number for revision in log] == list(range(1, head.head + 1))
            assert head.head_hash == log[-1].content_hash
            stored = {revision.number: revision.content_hash for revision in log}
            assert revisions.items() <= stored.items()
            for revision in log:
                loaded = catalog.load(revision)
                total = float(sum(x.sum() for x in loaded["q_proj"].values()))
                assert revision.metrics == {"total": total}
            # at most the commit that was in flight at each kill is there without having been acknowledged
            assert len(stored) - len(revisions) <= round + 1
    assert commits >= ROUNDS * WRITERS
    again = commit(catalog, 1.0)
    assert again == Catalog.open(place).get("user0")


def test_weights_without_a_commit_record_are_nothing(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    first = commit(catalog, 1.0)
    Keyspace.open(tmp_path / "catalog").transact([Write("blob/user0@0000000002", b"half"), Write("blob/bob@1", b"")])
    assert catalog.get("user0") == first
    assert catalog.log("user0") == [first]
    assert list(catalog.policies()) == ["user0"]
    with pytest.raises(PefxError, match="no revision 2"):
        catalog.get("user0", 2)
    second = commit(catalog, 2.0)
    assert catalog.load(second)["q_proj"]["a"][0, 0, 0] == 2.0


def test_a_failed_transaction_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    first = commit(catalog, 1.0)
    begin = Keyspace.begin

    def cut(self: Keyspace, writes: list[Write]) -> Commit:  # the last write is impossible: the others must not stay
        return begin(self, [*writes[:-1], replace(writes[-1], if_generation=b"\x00never")])

    monkeypatch.setattr(Keyspace, "begin", cut)
    with pytest.raises(PefxError):
        commit(catalog, 2.0)
    monkeypatch.undo()
    assert Keyspace.open(tmp_path / "catalog").keys("", "\x7f") == [
        "blob/user0@0000000001",
        "catalog",
        "policy/user0",
        "revision/user0@0000000001",
    ]
    assert catalog.log("user0") == [first]
