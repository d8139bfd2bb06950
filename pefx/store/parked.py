"""Parked sessions: all that a policy's training is, while others have the slots. One value a session and moment.

A value is a digest, a line of JSON (`luggage`: what is no array) and safetensors bytes. What a session is after so many
micro-batches never changes, so a value is written once, however often the session comes and goes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from pefx.errors import PefxError
from pefx.store.keyspace import Keyspace, Write
from pefx.store.names import after, parked_key

FORMAT = b"pefx-parked-1"


@dataclass(frozen=True, eq=False)
class Parked:
    """A session without a slot: arrays by name, and in `luggage` the rest, as JSON."""

    arrays: Mapping[str, np.ndarray]
    luggage: Any


def park(space: Keyspace, key: str, parked: Parked) -> None:
    """Keep it under `key`, a `parked_key`; once this returns it is there for good."""
    luggage = json.dumps(parked.luggage).encode()
    body = luggage + b"\n" + save({name: np.ascontiguousarray(x) for name, x in parked.arrays.items()})
    space.transact([Write(key, FORMAT + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)])


def unpark(space: Keyspace, key: str) -> Parked:
    """What was kept under `key`, bit for bit. PefxError kinds "unknown_session" where there is nothing, "damaged"."""
    value = space.read(key).value
    if value is None:
        told = f"catalog '{space.location}' does not hold '{key}', which a run left there; restore the catalog"
        raise PefxError(told, "unknown_session")
    check_parked(value, f"catalog '{space.location}': '{key}'")
    _, luggage, body = value.split(b"\n", 2)
    return Parked(load(body), json.loads(luggage))


def check_parked(value: bytes, where: str) -> None:
    """PefxError of kind "damaged" naming `where` unless `value` is what `park` wrote."""
    head, _, body = value.partition(b"\n")
    if head != FORMAT + b" " + hashlib.sha256(body).hexdigest().encode():
        raise PefxError(f"{where}: the parked session is damaged (its digest does not match)", "damaged")


def parked_keys(space: Keyspace, policy: str, number: int) -> list[str]:
    """All moments of a session that are kept."""
    prefix = parked_key(policy, number, 0)[:-10]
    return space.keys(prefix, after(prefix))


def discard(space: Keyspace, keys: list[str]) -> None:
    """Keep these no longer."""
    if keys:
        space.transact([Write(key, None) for key in keys])
