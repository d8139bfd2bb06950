"""Older schemas of the catalog's records, and what became of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pefx.config import AdapterSpec
from pefx.store.records import LATEST, Policy, Revision

SCHEMA = 2


@dataclass(frozen=True)
class Policy1:
    """A policy had one alias, its head, and neither owner nor state."""

    name: str
    base: str
    spec: AdapterSpec
    head: int
    head_hash: str
    created: str


@dataclass(frozen=True)
class Revision1:
    """A parent was a number of the same policy; there was one seed."""

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


def _policy(old: Policy1) -> Policy:
    return Policy(
        name=old.name,
        base=old.base,
        spec=old.spec,
        head=old.head,
        head_hash=old.head_hash,
        created=old.created,
        changed=old.created,
        aliases={LATEST: old.head},
    )


def _revision(old: Revision1) -> Revision:
    return Revision(
        policy=old.policy,
        number=old.number,
        content_hash=old.content_hash,
        base=old.base,
        spec=old.spec,
        parent=None if old.parent is None else f"{old.policy}@{old.parent}",
        step=old.step,
        seeds={"run": old.seed},
        config=old.config,
        data_fingerprint=old.data_fingerprint,
        metrics=old.evaluation,
        code_version=old.code_version,
        created=old.created,
        blob=old.blob,
        blob_bytes=old.blob_bytes,
    )


OLD_SCHEMAS: dict[tuple[int, str], tuple[type[Any], Callable[[Any], Any]]] = {
    (1, "policy"): (Policy1, _policy),
    (1, "revision"): (Revision1, _revision),
}
"""By schema and kind of record: the class it was, and how it is read today."""
