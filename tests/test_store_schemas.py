"""Older records are read as what they meant; foreign schemas are refused."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.store.archive import export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.encoding import decode, encode, to_plain
from pefx.store.garbage import collect
from pefx.store.keyspace import Write
from pefx.store.names import policy_key, revision_key
from pefx.store.records import Policy, Revision, Session
from pefx.store.schemas import SCHEMA
from tests.store_small import bits, commit, fresh
from tests.test_store_encoding import POLICY, TIME, seal


def test_another_schema_is_refused_even_when_it_would_parse() -> None:
    plain = json.loads(encode(POLICY))["value"]
    for schema, kind in ((SCHEMA + 1, "schema"), (0, "schema"), (None, "damaged"), ("1", "damaged")):
        with pytest.raises(PefxError) as caught:
            decode(Policy, seal("policy", plain, schema), "p")  # type: ignore[arg-type]
        assert caught.value.kind == kind


def test_the_first_schema_is_read() -> None:
    spec = {"method": "lora", "rank": 2, "alpha": 16.0, "targets": ["q_proj"], "expert_form": "per_expert"}
    policy = {"name": "a", "base": "sha256:b", "spec": spec, "head": 2, "head_hash": "sha256:c", "created": TIME}
    read = decode(Policy, seal("policy", policy, 1), "p")
    assert (read.head, read.aliases, read.state, read.changed) == (2, {"latest": 2}, "active", TIME)
    revision = {
        "policy": "a", "number": 2, "content_hash": "sha256:c", "base": "sha256:b", "spec": spec, "parent": 1,
        "step": 4, "seed": 9, "config": {}, "data_fingerprint": "f", "evaluation": {"x": 1.5}, "code_version": "0.1.0",
        "created": TIME, "blob": "blob/a@0000000002", "blob_bytes": 3,
    }  # fmt: skip
    old = decode(Revision, seal("revision", revision, 1), "r")
    assert (old.parent, old.seeds, old.metrics, old.session) == ("a@1", {"run": 9}, {"x": 1.5}, 0)
    with pytest.raises(PefxError, match="unknown field 'mood'"):
        decode(Policy, seal("policy", {**policy, "mood": 1}, 1), "p")


def old_spec(record: Any) -> dict[str, Any]:
    """A record with its spec as releases before methods had it."""
    plain = to_plain(record)
    names = ("method", "rank", "alpha", "targets", "expert_form")
    return plain | {"spec": {name: plain["spec"][name] for name in names}}


def as_schema_2(record: Any) -> bytes:
    """What the second release would have stored."""
    plain = old_spec(record) if isinstance(record, Policy | Revision) else to_plain(record)
    return seal(type(record).__name__.lower(), plain, 2)


def test_records_of_the_second_release_are_read(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    made = commit(catalog, "ann", 1)
    for record in (made, catalog.policy("ann")):
        assert decode(type(record), as_schema_2(record), "x") == record
        with pytest.raises(PefxError, match=r"unknown field 'spec\.frozen' in"):
            decode(type(record), seal(type(record).__name__.lower(), to_plain(record), 2), "x")
    session = Session("ann", 1, "run", TIME, TIME)
    assert decode(Session, as_schema_2(session), "x") == session


def as_schema_1(record: Any) -> bytes:
    """What the first release would have stored."""
    plain = old_spec(record)
    if isinstance(record, Policy):
        return seal("policy", {n: plain[n] for n in ("name", "base", "spec", "head", "head_hash", "created")}, 1)
    old = {n: v for n, v in plain.items() if n not in ("seeds", "metrics", "session")}
    parent = None if record.parent is None else int(record.parent.split("@")[1])
    return seal("revision", {**old, "parent": parent, "seed": 3, "evaluation": record.metrics}, 1)


def test_a_catalog_of_the_first_release_goes_on(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    made = [commit(catalog, "ann", 1), commit(catalog, "ann", 2, parent="ann@1")]
    old = [Write(revision_key("ann", r.number), as_schema_1(r)) for r in made]
    catalog.space.transact([*old, Write(policy_key("ann"), as_schema_1(catalog.policy("ann")))])
    again = Catalog.open(tmp_path / "catalog")
    assert again.log("ann") == [replace(r, seeds={"run": 3}) for r in made]
    assert audit(again).faults == []
    export_tar(again, tmp_path / "old.tar")
    assert import_tar(again, tmp_path / "old.tar").there == 1
    other = fresh(tmp_path, "other")
    assert import_tar(other, tmp_path / "old.tar").revisions == 2
    assert (other.log("ann"), other.policy("ann")) == (again.log("ann"), again.policy("ann"))
    assert audit(other).faults == []
    assert vars(collect(again, timedelta(0))) == {"revisions": 0, "blobs": 0, "blob_bytes": 0}
    third = commit(again, "ann", 3, parent="ann@2")
    assert (third.number, again.policy("ann").aliases) == (3, {"latest": 3})
    wanted = [bits(again, r) for r in again.log("ann")]
    compact(again)
    assert [bits(again, r) for r in again.log("ann")] == wanted
    assert audit(again).faults == []
    assert encode(again.policy("ann")) != as_schema_1(again.policy("ann"))
