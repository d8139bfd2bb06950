"""What the catalog remembers: typed frozen records and their strict JSON form.

A stored record is one line of JSON: kind, schema, a checksum of the value, the value. The store underneath does not
notice a flipped bit, so the checksum does. A record of another schema, with a field too many or too few, or of a wrong
type is refused, never guessed at. A change of any class below (or of `AdapterSpec`) needs a new `SCHEMA` and a written
way to read the old one.
"""

import hashlib
import json
import types
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pefx.config import AdapterSpec
from pefx.errors import PefxError

SCHEMA = 1

Record = TypeVar("Record")


@dataclass(frozen=True)
class Policy:
    """The durable identity of a personal model. It is bound to one base and one adapter spec for life.

    `head` is the number of its newest revision, `head_hash` that revision's content hash. `created` is ISO 8601, UTC.
    """

    name: str
    base: str
    spec: AdapterSpec
    head: int
    head_hash: str
    created: str


@dataclass(frozen=True)
class Revision:
    """One immutable exported adapter of a policy, and where it came from.

    Numbers count from 1. `content_hash` is `pefx.store.blob.content_hash`: weights, spec and base, nothing else, so
    two runs that end in the same bits have the same one. `parent` is the number of the revision it was trained from
    (None: from a fresh adapter), `step` the training step, `blob` the key of its bytes, `blob_bytes` their count.
    """

    policy: str
    number: int
    content_hash: str
    base: str
    spec: AdapterSpec
    parent: int | None
    step: int
    seed: int
    config: dict[str, Any]
    data_fingerprint: str
    evaluation: dict[str, Any]
    code_version: str
    created: str
    blob: str
    blob_bytes: int

    @property
    def key(self) -> str:
        """`policy@number`: what residency and answers name."""
        return f"{self.policy}@{self.number}"


def canonical_json(value: Any, where: str) -> bytes:
    """One spelling per value: sorted keys, no spaces, ASCII. PefxError naming `where` for what JSON cannot say."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PefxError(
            f"{where}: not storable as JSON: {error}; use str, int, finite float, bool, list, dict"
        ) from error
    return text.encode()


def to_plain(record: Any) -> dict[str, Any]:
    """A record as dicts, lists and scalars; floats stay floats even if an int was given."""
    hints = _hints(type(record))
    plain: dict[str, Any] = {}
    for name, hint in hints.items():
        value = getattr(record, name)
        if is_dataclass(value):
            value = to_plain(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        plain[name] = value
    return plain


def from_plain(cls: type[Record], plain: Any, where: str) -> Record:
    """The inverse of `to_plain`, checking every field. PefxError names `where` and the field."""
    if not isinstance(plain, dict):
        raise _refusal(f"{where}: expected an object with the fields of {cls.__name__}, found {type(plain).__name__}")
    hints = _hints(cls)
    unknown, missing = sorted(plain.keys() - hints.keys()), sorted(hints.keys() - plain.keys())
    if unknown:
        raise _refusal(f"{where}: unknown field {', '.join(map(repr, unknown))} in a {cls.__name__} of schema {SCHEMA}")
    if missing:
        raise _refusal(f"{where}: missing field {', '.join(map(repr, missing))} in a {cls.__name__} of schema {SCHEMA}")
    return cls(**{name: _checked(hint, plain[name], f"{where}: field '{name}'") for name, hint in hints.items()})


def encode(record: Policy | Revision) -> bytes:
    """The bytes the catalog stores for `record`."""
    kind = type(record).__name__.lower()
    value = to_plain(record)
    digest = hashlib.sha256(canonical_json(value, f"{kind} record")).hexdigest()
    return canonical_json({"kind": kind, "schema": SCHEMA, "sha256": digest, "value": value}, f"{kind} record")


def decode(cls: type[Record], data: bytes, where: str) -> Record:
    """The record in `data`. PefxError of kind "damaged" or "schema" naming `where` when it is not exactly one."""
    try:
        envelope = json.loads(data)
    except ValueError as error:
        raise _damage(f"{where}: the stored record is damaged (no JSON: {error})") from error
    if not isinstance(envelope, dict) or "schema" not in envelope:
        raise _damage(f"{where}: the stored record is damaged (no schema version)")
    if envelope["schema"] != SCHEMA:
        raise _refusal(
            f"{where}: written with record schema {envelope['schema']!r}; this version reads schema {SCHEMA}"
        )
    kind = cls.__name__.lower()
    if envelope.keys() != {"kind", "schema", "sha256", "value"} or envelope["kind"] != kind:
        raise _damage(f"{where}: the stored record is damaged (no {kind} record)")
    if hashlib.sha256(canonical_json(envelope["value"], where)).hexdigest() != envelope["sha256"]:
        raise _damage(f"{where}: the stored record is damaged (its checksum does not match)")
    return from_plain(cls, envelope["value"], where)


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _checked(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` says, or PefxError."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return from_plain(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value in args:
            return value
        raise _refusal(f"{where}: expected one of {', '.join(map(str, args))}, found {value!r}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _checked(inner, value, where)
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_checked(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        raise _refusal(f"{where}: expected a list, found {value!r}")
    expected = origin or hint
    if isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool):
        return value
    raise _refusal(f"{where}: expected {expected.__name__}, found {value!r}")


def _damage(message: str) -> PefxError:
    return PefxError(message, kind="damaged")


def _refusal(message: str) -> PefxError:
    return PefxError(message, kind="schema")
