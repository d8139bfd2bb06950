"""Records: strict both ways; nothing foreign, old or damaged is taken for a record."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.records import SCHEMA, Policy, Revision, canonical_json, decode, encode

SPEC = AdapterSpec(rank=4, alpha=8.0, targets=("q_proj", "experts.up_proj"))
REVISION = Revision(
    policy="users/alice",
    number=3,
    content_hash="sha256:ab",
    base="sha256:cd",
    spec=SPEC,
    parent=2,
    step=40,
    seed=7,
    config={"optimizer": {"learning_rate": 5e-3}, "users": ["alice"]},
    data_fingerprint="sha256:ef",
    evaluation={"heldout": 2.25},
    code_version="0.1.0",
    created="2026-01-01T00:00:00+00:00",
    blob="blob/users/alice@0000000003",
    blob_bytes=1234,
)
POLICY = Policy("users/alice", "sha256:cd", SPEC, 3, "sha256:ab", "2026-01-01T00:00:00+00:00")


def resealed(record: Policy | Revision, **changes: Any) -> bytes:
    """The stored form of `record` with changed value fields (`...`: left out) and a right checksum."""
    envelope = json.loads(encode(record))
    plain = {**envelope["value"], **changes}
    plain = {name: value for name, value in plain.items() if value is not ...}
    return seal(type(record).__name__.lower(), plain)


def seal(kind: str, plain: dict[str, Any], schema: int = SCHEMA) -> bytes:
    digest = hashlib.sha256(canonical_json(plain, "test")).hexdigest()
    return canonical_json({"kind": kind, "schema": schema, "sha256": digest, "value": plain}, "test")


@pytest.mark.parametrize("record", [REVISION, replace(REVISION, parent=None), POLICY])
def test_round_trip(record: Policy | Revision) -> None:
    again = decode(type(record), encode(record), "record")
    assert again == record
    assert type(again.spec.alpha) is float
    assert encode(again) == encode(record)
    assert b"\n" not in encode(record)


def test_key_names_policy_and_number() -> None:
    assert REVISION.key == "users/alice@3"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mood": 1}, "unknown field 'mood' in a Revision"),
        ({"step": ...}, "missing field 'step' in a Revision"),
        ({"step": "40"}, "field 'step': expected int, found '40'"),
        ({"step": True}, "field 'step': expected int, found True"),
        ({"step": None}, "field 'step': expected int, found None"),
        ({"parent": "2"}, "field 'parent': expected int"),
        ({"config": []}, "field 'config': expected dict"),
        ({"spec": {"rank": 4}}, "field 'spec': missing field 'alpha'"),
        ({"spec": 4}, "field 'spec': expected an object with the fields of AdapterSpec"),
    ],
)
def test_other_shapes_are_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PefxError, match=told) as caught:
        decode(Revision, resealed(REVISION, **changes), "revision x@3")
    assert caught.value.kind == "schema"
    assert str(caught.value).startswith("revision x@3: ")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("method", "dora", "field 'method': expected one of lora, rslora, found 'dora'"),
        ("alpha", 8, "field 'alpha': expected float, found 8"),
        ("targets", "q_proj", "field 'targets': expected a list"),
        ("targets", ["q_proj", 1], r"field 'targets'\[1\]: expected str"),
        ("mood", 1, "unknown field 'mood' in a AdapterSpec"),
    ],
)
def test_the_spec_inside_is_as_strict(field: str, value: Any, told: str) -> None:
    spec = json.loads(encode(REVISION))["value"]["spec"] | {field: value}
    with pytest.raises(PefxError, match=told):
        decode(Revision, resealed(REVISION, spec=spec), "r")


def test_another_schema_is_refused_even_when_it_would_parse() -> None:
    plain = json.loads(encode(POLICY))["value"]
    for schema in (SCHEMA + 1, 0, None, "1"):
        with pytest.raises(PefxError, match=f"reads schema {SCHEMA}") as caught:
            decode(Policy, seal("policy", plain, schema), "p")  # type: ignore[arg-type]
        assert caught.value.kind == "schema"


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
    with pytest.raises(PefxError, match="revision record: not storable as JSON"):
        encode(replace(REVISION, evaluation={"heldout": value}))
