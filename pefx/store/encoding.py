"""Records as bytes and back: one line of JSON with kind, schema, a checksum of the value, and the value.

The store underneath does not notice a flipped bit, so the checksum does. A record of an unknown schema, with
a field too many or too few, or of a wrong type is refused, never guessed at.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec

from pefx.errors import PefxError
from pefx.store.schemas import OLD_SCHEMAS, SCHEMA

Record = TypeVar("Record")


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    schema: int
    sha256: str
    value: msgspec.Raw


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_ENCODER = msgspec.json.Encoder(order="sorted")


def canonical_json(value: Any, where: str) -> bytes:
    """One spelling per value: sorted keys, no spaces, ASCII. PefxError naming `where` for what JSON cannot say."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PefxError(
            f"{where}: not storable as JSON: {error}; use str, int, finite float, bool, list, dict"
        ) from error
    return text.encode()


def storable(value: Any, where: str) -> Any:
    """`value` as a reader gets it back: tuples as lists. PefxError naming `where` for what JSON cannot say."""
    return json.loads(canonical_json(value, where))


def to_plain(record: Any) -> dict[str, Any]:
    """A record as dicts, lists and scalars."""
    return msgspec.to_builtins(record)


def encode(record: Any) -> bytes:
    """The bytes the catalog stores for `record`. PefxError kind "schema" for what they cannot hold."""
    return _sealed(type(record), _value(record, type(record).__name__.lower()))


def sealed(record: Record, where: str) -> tuple[Record, bytes]:
    """`record` exactly as a reader of its bytes will get it, and these. PefxError kind "schema" for a wrong type."""
    value = _value(record, where)
    return _read(type(record), value, where), _sealed(type(record), value)


def _value(record: Any, where: str) -> bytes:
    try:
        return _ENCODER.encode(record)
    except (TypeError, ValueError) as error:  # a foreign type; a name that is no Unicode, as of an odd file
        raise PefxError(f"{where}: not storable: {error}", "schema") from error


def _sealed(cls: type[Any], value: bytes) -> bytes:
    digest = hashlib.sha256(value).hexdigest()
    return b'{"kind":"%s","schema":%d,"sha256":"%s","value":%s}' % (
        cls.__name__.lower().encode(), SCHEMA, digest.encode(), value,
    )  # fmt: skip


def decode(cls: type[Record], data: bytes, where: str) -> Record:
    """The record in `data`. PefxError of kind "damaged" or "schema" naming `where` when it is not exactly one."""
    kind = cls.__name__.lower()
    try:
        envelope = _ENVELOPE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PefxError(f"{where}: the stored record is damaged ({error})", "damaged") from error
    value = bytes(envelope.value)
    if envelope.kind != kind:
        raise PefxError(f"{where}: the stored record is damaged (no {kind} record)", "damaged")
    if hashlib.sha256(value).hexdigest() != envelope.sha256:
        raise PefxError(f"{where}: the stored record is damaged (its checksum does not match)", "damaged")
    if envelope.schema == SCHEMA:
        return _read(cls, value, where)
    if upgrade := OLD_SCHEMAS.get((envelope.schema, kind)):
        old, renewed = upgrade
        return renewed(_read(old, value, where))
    raise PefxError(
        f"{where}: written with record schema {envelope.schema}; this version reads schemas up to {SCHEMA}", "schema"
    )


def _read(cls: type[Record], value: bytes, where: str) -> Record:
    try:
        record = _decoder(cls).decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        told = str(error).replace("`$.", "`")
        raise PefxError(f"{where}: {told}, in a {cls.__name__} of schema {SCHEMA}", "schema") from error
    if missing := _missing(record):
        raise PefxError(f"{where}: missing field '{missing}' in a {cls.__name__} of schema {SCHEMA}", "schema")
    if _ENCODER.encode(record) != value and (unknown := _unknown(json.loads(value), to_plain(record))):
        raise PefxError(f"{where}: unknown field '{unknown}' in a {cls.__name__} of schema {SCHEMA}", "schema")
    return record


@cache
def _decoder(cls: type[Any]) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(cls)


def _missing(record: Any, path: str = "") -> str | None:
    """The first field that was not in what was read. A default is for those who write, not for those who read."""
    there = vars(record)  # what has a default and was not read is not in it
    names, nested = _fields(type(record))
    if len(there) < len(names):
        return path + next(name for name in names if name not in there)
    for name in nested:
        if inner := _missing(there[name], f"{path}{name}."):
            return inner
    return None


@cache
def _fields(cls: type[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a record's fields, and of those that are records themselves."""
    names = tuple(entry.name for entry in fields(cls))
    return names, tuple(entry.name for entry in fields(cls) if is_dataclass(entry.type))


def _unknown(stored: Any, known: Any, path: str = "") -> str | None:
    """The first field of `stored` that was not read."""
    if not isinstance(stored, dict) or not isinstance(known, dict):
        return None
    for name in stored:
        if name not in known:
            return path + name
        if inner := _unknown(stored[name], known[name], f"{path}{name}."):
            return inner
    return None
