"""The catalog: what a commit makes, what it refuses, and that damage is told instead of served."""

import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.store.catalog import Catalog, require_base
from pefx.store.encoding import encode
from pefx.store.keyspace import Write
from pefx.store.names import check_name
from tests.store_small import BASE, OTHER_BASE, SPEC, commit, refused

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(tmp_path / "catalog", create=True)


def test_commits_make_a_lineage(catalog: Catalog, tmp_path: Path) -> None:
    first = commit(catalog, "users/alice", 1)
    second = commit(catalog, "users/alice", 2, parent="users/alice@1", step=20)
    other = commit(catalog, "bob", 1)
    assert (first.number, first.parent, second.number, second.parent, other.number) == (1, None, 2, "users/alice@1", 1)
    assert first.content_hash == other.content_hash != second.content_hash
    assert first.config == {"name": "tiny", "shape": [1, 2]}
    for reader in (catalog, Catalog.open(tmp_path / "catalog", read_only=True)):
        assert reader.get("users/alice") == reader.get("users/alice", "latest") == second
        assert reader.get("users/alice", 1) == first
        assert reader.log("users/alice") == [first, second]
        assert list(reader.policies()) == ["bob", "users/alice"]
        assert list(reader.policies("users/")) == ["users/alice"]
        assert list(reader.policies("z")) == []
        policy = reader.policy("users/alice")
        assert (policy.head, policy.head_hash, policy.base, policy.spec) == (2, second.content_hash, BASE, SPEC)


def test_lineages_of_similar_names_do_not_mix(catalog: Catalog) -> None:
    for name in ("a", "a/b", "a.b", "a-b", "ab", "a/b/c", "A", "a_1"):
        for seed in range(3):
            commit(catalog, name, seed)
    for name in catalog.policies():
        assert [(old.policy, old.number) for old in catalog.log(name)] == [(name, 1), (name, 2), (name, 3)]
    assert list(catalog.policies("a/b")) == ["a/b", "a/b/c"]


def test_more_than_nine_revisions_stay_in_order(catalog: Catalog) -> None:
    for seed in range(12):
        commit(catalog, "alice", seed)
    assert [old.number for old in catalog.log("alice")] == list(range(1, 13))


def test_the_same_content_again_is_the_head(catalog: Catalog) -> None:
    first = commit(catalog, "alice", 1)
    assert commit(catalog, "alice", 1, step=99, metrics={}) == first
    assert commit(catalog, "alice", 2).number == 2
    assert commit(catalog, "alice", 1).number == 3  # same bits as an older revision: a new one, the head differs
    assert len(catalog.log("alice")) == 3


def test_a_lost_race_is_told_and_leaves_nothing(catalog: Catalog, tmp_path: Path, monkeypatch) -> None:
    commit(catalog, "alice", 1)
    rival = Catalog.open(tmp_path / "catalog")
    read_many = catalog.space.read_many

    def read_then_lose(keys):  # the rival commits between our read of the head and our transaction
        entries = read_many(keys)
        if keys == ["policy/alice"]:
            commit(rival, "alice", 2)
        return entries

    monkeypatch.setattr(catalog.space, "read_many", read_then_lose)
    assert "try again" in refused("conflict", commit, catalog, "alice", 3)
    monkeypatch.undo()
    assert [old.number for old in catalog.log("alice")] == [1, 2]
    assert catalog.get("alice").content_hash == commit(rival, "x", 2).content_hash
    assert commit(catalog, "alice", 3).number == 3


def test_a_revision_is_never_overwritten(catalog: Catalog) -> None:
    policy = commit(catalog, "alice", 1)
    catalog.space.transact([Write("revision/alice@0000000002", encode(replace(policy, number=2)))])
    refused("damaged", commit, catalog, "alice", 2)
    assert catalog.get("alice").number == 1


@pytest.mark.parametrize(
    "name",
    ["", "..", ".", "a/..", "../a", "a/./b", "/a", "a/", "a//b", "a b", "a@1", "a\\b", "a\nb", "ü", "a" * 129, "a:b"],
)
def test_names_that_are_paths_or_odd_are_refused(catalog: Catalog, name: str) -> None:
    for call in (catalog.policy, catalog.get, catalog.log):
        assert len(refused("bad_name", call, name)) < 250
    refused("bad_name", commit, catalog, name)
    assert list(catalog.policies()) == []


@pytest.mark.parametrize("name", ["a", "a" * 128, "Users/alice-1/v2.0_x", "...x", "0"])
def test_good_names_pass(name: str) -> None:
    check_name(name)


def test_provenance_is_checked(catalog: Catalog) -> None:
    assert "`step`" in refused("schema", commit, catalog, "alice", step=True)
    assert "not storable as JSON" in refused("invalid_input", commit, catalog, "alice", metrics={"x": float("nan")})
    refused("unknown_policy", commit, catalog, "alice", parent="alice@1")
    commit(catalog, "bob", 1)
    refused("unknown_revision", commit, catalog, "bob", 2, parent="bob@2")
    with pytest.raises(TypeError, match="mood"):
        commit(catalog, "bob", 2, mood=1)
    assert [old.number for name in catalog.policies() for old in catalog.log(name)] == [1]


def test_require_base(catalog: Catalog) -> None:
    revision = commit(catalog, "alice")
    require_base(revision, BASE)
    told = refused("wrong_base", require_base, revision, OTHER_BASE)
    assert all(part in told for part in ("alice@1", BASE, OTHER_BASE))


def everything(path: Path) -> dict[str, Any]:
    catalog = Catalog.open(path, read_only=True)
    found: dict[str, Any] = {}
    for name in catalog.policies():
        found[name] = catalog.policy(name)
        for revision in catalog.log(name):
            adapter = catalog.load(revision)
            found[revision.key] = (revision, {f"{s}.{f}": x.tobytes() for s in adapter for f, x in adapter[s].items()})
    return found


def test_a_flipped_byte_anywhere_is_told_or_harmless(catalog: Catalog, tmp_path: Path) -> None:
    for seed in range(4):
        commit(catalog, f"user{seed % 2}", seed)
    expected = everything(tmp_path / "catalog")
    rng = random.Random(0)
    told: list[PefxError] = []
    for round in range(100):
        place = tmp_path / f"copy{round}"
        shutil.copytree(tmp_path / "catalog", place)
        file = rng.choice(sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size))
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            assert everything(place) == expected  # a byte of an old version of a tree node: nobody reads it
        except PefxError as error:
            told.append(error)
        shutil.rmtree(place)
    assert len(told) > 50
    assert {error.kind for error in told} <= {"damaged", "schema"}
    assert not any("\n" in str(error) for error in told)


def test_every_byte_of_the_weights_counts(catalog: Catalog, tmp_path: Path) -> None:
    revision = commit(catalog, "alice")
    blob = catalog.space.read(revision.blob).value
    assert blob is not None
    for position in [0, 8, 20, *range(len(blob) - 30, len(blob))]:
        flipped = bytearray(blob)
        flipped[position] ^= 1
        catalog.space.transact([Write(revision.blob, bytes(flipped))])
        told = refused("damaged", catalog.load, revision)
        assert "alice@1" in told
    catalog.space.transact([Write(revision.blob, blob[:-1])])
    refused("damaged", catalog.load, revision)
    missing = replace(revision, blob="blob/elsewhere")
    assert "missing" in refused("damaged", catalog.load, missing)


RACER = """
import sys
import numpy as np
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
place, worker = sys.argv[1], int(sys.argv[2])
catalog = Catalog.open(place, create=True)
spec = AdapterSpec(rank=1, targets=("q_proj",))
rng = np.random.default_rng(worker)
conflicts = 0
for i in range(12):
    adapter = {"q_proj": {f: rng.normal(size=(2, 1, 64)).astype(np.float32) for f in "ab"}}
    for policy in ("shared", f"own{worker}"):
        while True:
            try:
                done = catalog.commit(policy, adapter=adapter, spec=spec, base="sha256:0", step=i, seeds={},
                                      config={}, data_fingerprint="", metrics={"by": worker})
                break
            except PefxError as error:
                if error.kind != "conflict":
                    raise
                conflicts += 1
        print(policy, done.number, done.content_hash)
print("conflicts", conflicts, file=sys.stderr)
"""


def test_processes_that_race_lose_nothing(tmp_path: Path, subprocess_environment: dict[str, str]) -> None:
    place = tmp_path / "catalog"  # made by whoever is first
    acknowledged: dict[tuple[str, int], str] = {}
    with ExitStack() as cleanup:
        racers = []
        for worker in range(3):
            command = [sys.executable, "-c", RACER, str(place), str(worker)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            racers.append(cleanup.enter_context(subprocess.Popen(command, env=subprocess_environment, **pipes)))
            cleanup.callback(racers[-1].kill)
        for racer in racers:
            out, err = racer.communicate(timeout=60)
            assert racer.returncode == 0, err
            for line in out.splitlines():
                policy, number, content = line.split()
                assert (policy, int(number)) not in acknowledged
                acknowledged[policy, int(number)] = content
    catalog = Catalog.open(place, read_only=True)
    assert list(catalog.policies()) == ["own0", "own1", "own2", "shared"]
    stored = {(old.policy, old.number): old for name in catalog.policies() for old in catalog.log(name)}
    assert {key: old.content_hash for key, old in stored.items()} == acknowledged
    assert sorted(number for policy, number in stored if policy == "shared") == list(range(1, 37))
    for old in stored.values():
        catalog.load(old)


@pytest.fixture
def subprocess_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def test_records_are_plain_json(catalog: Catalog) -> None:
    commit(catalog, "alice")
    value = catalog.space.read("revision/alice@0000000001").value
    assert value is not None
    assert json.loads(value)["value"]["policy"] == "alice"
