"""Records as bytes: strict both ways; nothing foreign or damaged is taken for a record."""

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.encoding import canonical_json, decode, encode, sealed, storable
from pefx.store.records import Policy, Revision, Score, Session, Stage
from pefx.store.schemas import SCHEMA

SPEC = AdapterSpec(rank=4, alpha=8.0, targets=("q_proj", "experts.up_proj"))
REVISION = Revision(
    policy="users/alice",
    number=3,
    content_hash="sha256:ab",
    base="sha256:cd",
    spec=SPEC,
    parent="users/alice@2",
    step=40,
    seeds={"run": 7},
    config={"optimizer": {"learning_rate": 5e-3}, "users": ["alice"]},
    data_fingerprint="sha256:ef",
    metrics={"heldout": 2.25},
    code_version="0.1.0",
    created="2026-01-01T00:00:00+00:00",
    blob="blob/users/alice@0000000003",
    blob_bytes=1234,
)
TIME = "2026-01-01T00:00:00+00:00"
POLICY = Policy("users/alice", "sha256:cd", SPEC, 3, "sha256:ab", TIME, TIME, aliases={"latest": 3}, tags=("a", "b"))
OTHERS = [
    Session("users/alice", 2, "runs/demo", TIME, TIME, start="users/alice@1"),
    Stage("users/alice", 3, "registered", TIME),
    Score("users/alice", 3, "sha256:ab", "sha256:cd", "chat", "exact", "shared", {"accuracy": 0.5}, 8, "f", TIME),
]


def resealed(record: Policy | Revision, **changes: Any) -> bytes:
    """The stored form of `record` with changed value fields (`...`: left out) and a right checksum."""
    envelope = json.loads(encode(record))
    plain = {**envelope["value"], **changes}
    plain = {name: value for name, value in plain.items() if value is not ...}
    return seal(type(record).__name__.lower(), plain)


def seal(kind: str, plain: dict[str, Any], schema: int = SCHEMA) -> bytes:
    digest = hashlib.sha256(canonical_json(plain, "test")).hexdigest()
    return canonical_json({"kind": kind, "schema": schema, "sha256": digest, "value": plain}, "test")


@pytest.mark.parametrize("record", [REVISION, replace(REVISION, parent=None), POLICY, *OTHERS])
def test_round_trip(record: Any) -> None:
    again = decode(type(record), encode(record), "record")
    assert again == record
    assert encode(again) == encode(record)
    assert b"\n" not in encode(record)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mood": 1}, "unknown field 'mood' in a Revision"),
        ({"step": ...}, "missing required field `step`, in a Revision"),
        ({"session": ...}, "missing field 'session' in a Revision"),
        ({"step": "40"}, "Expected `int`, got `str` - at `step`"),
        ({"step": True}, "Expected `int`, got `bool` - at `step`"),
        ({"step": None}, "Expected `int`, got `null` - at `step`"),
        ({"parent": 2}, "Expected `str | null`, got `int` - at `parent`"),
        ({"config": []}, "Expected `object`, got `array` - at `config`"),
        ({"spec": {"rank": 4}}, "missing field 'spec.method'"),
        ({"spec": 4}, "Expected `object`, got `int` - at `spec`"),
    ],
)
def test_other_shapes_are_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PefxError, match=re.escape(told)) as caught:
        decode(Revision, resealed(REVISION, **changes), "revision x@3")
    assert caught.value.kind == "schema"
    assert str(caught.value).startswith("revision x@3: ")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("method", "nora", "Invalid enum value 'nora' - at `spec.method`"),
        ("targets", "q_proj", "Expected `array`, got `str` - at `spec.targets`"),
        ("targets", ["q_proj", 1], "Expected `str`, got `int` - at `spec.targets[1]`"),
        ("mood", 1, "unknown field 'spec.mood' in a Revision"),
    ],
)
def test_the_spec_inside_is_as_strict(field: str, value: Any, told: str) -> None:
    spec = json.loads(encode(REVISION))["value"]["spec"] | {field: value}
    with pytest.raises(PefxError, match=re.escape(told)):
        decode(Revision, resealed(REVISION, spec=spec), "r")


def test_every_flipped_bit_is_noticed() -> None:
    stored = encode(POLICY)
    for position in range(len(stored)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[position] ^= 1 << bit
            with pytest.raises(PefxError):
                decode(Policy, bytes(damaged), "p")


@pytest.mark.parametrize("stored", [b"", b"[]", b"null", b"\xff\xfe", b"{}", encode(REVISION)[:-1], encode(REVISION)])
def test_what_is_no_policy_record_is_damage(stored: bytes) -> None:
    with pytest.raises(PefxError, match="p: the stored record is damaged") as caught:
        decode(Policy, stored, "p")
    assert caught.value.kind == "damaged"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"x", {1: 2, "a": 3}])
def test_values_json_cannot_say_are_refused(value: Any) -> None:
    with pytest.raises(PefxError, match="metrics: not storable as JSON"):
        storable({"heldout": value}, "metrics")


def test_storable_is_what_a_reader_gets() -> None:
    assert storable({"b": (1, 2), "a": 0.5}, "x") == {"a": 0.5, "b": [1, 2]}


def test_sealed_is_what_is_read() -> None:
    record, stored = sealed(replace(REVISION, spec=replace(SPEC, alpha=8)), "r")
    assert type(record.spec.alpha) is float
    assert decode(Revision, stored, "r") == record
    with pytest.raises(PefxError, match="Expected `int`, got `bool` - at `step`"):
        sealed(replace(REVISION, step=True), "r")


@pytest.mark.parametrize(
    "changes",
    [{"data_fingerprint": "odd-\udcff"}, {"config": {"file": "\udcff"}}, {"config": {"rate": np.float32(0.5)}}],
)
def test_what_bytes_cannot_hold_is_told(changes: dict[str, Any]) -> None:
    """As the name of a file that is no UTF-8."""
    for call in (lambda record: sealed(record, "r"), encode):
        with pytest.raises(PefxError, match="not storable: ") as caught:
            call(replace(REVISION, **changes))
        assert caught.value.kind == "schema"
