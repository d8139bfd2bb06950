"""Several processes over one catalog: all that each was told is there, whatever the others did meanwhile."""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from tests.store_small import adapter, commit, fresh

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
from datetime import timedelta
from pathlib import Path
from pefx.errors import PefxError
from pefx.store.archive import export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, give, retag, retire, rollback, set_alias
from pefx.store.sessions import Wanted, open_sessions
from tests.store_small import BASE, SPEC, commit, draft

place, worker, role, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
catalog = Catalog.open(place)


def told(revision, seed):
    print(revision.key, revision.content_hash, seed, flush=True)


def stubborn(policy, seed):
    while True:
        try:
            return commit(catalog, policy, seed)
        except PefxError as error:
            if error.kind != "conflict":
                raise


def committing(i, seed):
    told(stubborn("shared", seed), seed)
    told(stubborn(f"own-{worker}", seed), seed)


def in_bulk(i, seed):
    drafts = [draft(f"bulk-{worker}-{i}-{j}", seed + j) for j in range(4)]
    for j, revision in enumerate(catalog.commit_many(drafts)):
        told(revision, seed + j)


def branching(i, seed):
    commit(catalog, f"source-{worker}-{i}", seed)
    told(branch(catalog, f"source-{worker}-{i}", f"branch-{worker}-{i}"), seed)
    retire(catalog, f"source-{worker}-{i}")


def labelling(i, seed):
    # every worker its own labels, all of one policy: none is lost
    set_alias(catalog, "labels", f"w{worker}-{i}", 1 + i % 2)
    retag(catalog, "labels", add=(f"w{worker}-{i}",))
    give(catalog, "labels", f"w{worker}")
    rollback(catalog, "labels", f"w{worker}-{i}", 1) if i % 2 else None
    print(f"w{worker}-{i}", flush=True)


def opening(i, seed):
    for session in open_sessions(catalog, f"{worker}-{i}", [Wanted("trained", BASE, SPEC)]):
        print(session.number, flush=True)


def branching_to_one_name(i, seed):
    try:
        print(branch(catalog, "labels", f"taken-{i}").key, flush=True)
    except PefxError as error:
        assert error.kind == "name_taken", error


def exporting(i, seed):
    file = Path(place).parent / f"{worker}-{i}.tar"
    export_tar(catalog, file)
    other = Catalog.open(f"memory://{i}", create=True)
    done = import_tar(other, file)
    assert done.refused == [], done
    assert audit(other).faults == []


def auditing(i, seed):
    assert audit(catalog).faults == []


work = {
    "commit": committing, "bulk": in_bulk, "branch": branching, "label": labelling, "export": exporting,
    "open": opening, "take": branching_to_one_name, "audit": auditing,
    "collect": lambda i, seed: collect(catalog, timedelta(0)), "compact": lambda i, seed: compact(catalog),
}
for i in range(rounds):
    for one in role.split("+"):
        work[one](i, 10_000 * worker + 10 * i)
"""


def together(place: Path, roles: Iterable[tuple[str, int]]) -> list[list[str]]:
    """Run a process for each role (some, joined by +) and count of rounds; returns the words of the lines printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines: list[list[str]] = []
    with ExitStack() as cleanup:
        running = []
        for worker, (role, rounds) in enumerate(roles):
            command = [sys.executable, "-c", PROGRAM, str(place), str(worker), role, str(rounds)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            running.append(cleanup.enter_context(subprocess.Popen(command, env=environment, **pipes)))
            cleanup.callback(running[-1].kill)
        for process in running:
            out, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
            lines += [line.split() for line in out.splitlines()]
    return lines


def check_told(catalog: Catalog, lines: list[list[str]]) -> None:
    """What was acknowledged is there once, under its number, with its own weights; numbers of a policy have no gap."""
    assert len({key for key, _, _ in lines}) == len(lines)
    for key, content, seed in lines:
        name, number = key.split("@")
        revision = catalog.get(name, int(number))
        assert revision.content_hash == content
        weights, wanted = catalog.load(revision), adapter(int(seed))
        assert all(np.array_equal(weights[site][f], wanted[site][f]) for site in wanted for f in wanted[site])
    for name in catalog.policies():
        numbers = [revision.number for revision in catalog.log(name)]
        assert numbers == list(range(1, len(numbers) + 1))
    assert audit(catalog).faults == []


@pytest.mark.slow  # a smaller one is in tests/test_store_catalog.py
def test_four_that_commit_lose_nothing(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    check_told(catalog, together(tmp_path / "catalog", [("commit", 250)] * 4))
    assert len(catalog.log("shared")) == 1000
    assert [len(catalog.log(f"own-{worker}")) for worker in range(4)] == [250] * 4


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_all_at_once(tmp_path: Path, rounds: int) -> None:
    """Commits, branches, collections, compactions, exports and audits."""
    catalog = fresh(tmp_path)
    roles = [("commit+bulk", 4), ("commit+branch", 4), ("collect+compact", 4), ("audit+export", 1)]
    check_told(catalog, together(tmp_path / "catalog", [(role, times * rounds) for role, times in roles]))


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_changes_of_one_policy_are_all_kept(tmp_path: Path, rounds: int) -> None:
    catalog = fresh(tmp_path)
    for seed in range(3):
        commit(catalog, "labels", seed)
    lines = together(tmp_path / "catalog", [("label+open+take", rounds)] * 3)
    policy = catalog.policy("labels")
    said = {words[0] for words in lines if words[0].startswith("w")}
    assert len(said) == 3 * rounds
    assert set(policy.tags) == said
    assert policy.aliases == {"latest": 3, **dict.fromkeys(said, 1)}
    assert policy.owner in ("w0", "w1", "w2")
    sessions = sorted(int(words[0]) for words in lines if words[0].isdigit())
    assert sessions == list(range(1, 3 * rounds + 1))  # each its own number
    assert catalog.policy("trained").session == 3 * rounds
    taken = sorted(words[0] for words in lines if words[0].startswith("taken"))
    assert taken == sorted(f"taken-{i}@1" for i in range(rounds))  # one of the three had each name
    assert audit(catalog).faults == []
