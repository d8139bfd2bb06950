"""Older schemas of the catalog's records, and what became of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pefx.config import AdapterSpec
from pefx.config.shapes import ExpertForm
from pefx.store.records import LATEST, Policy, Revision, Score, Session, Stage

SCHEMA = 4


@dataclass(frozen=True)
class AdapterSpec2:
    """All methods were LoRA, in one scale or another."""

    method: Literal["lora", "rslora"]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    expert_form: ExpertForm


@dataclass(frozen=True)
class AdapterSpec3:
    """There were no memories."""

    method: Literal["lora", "rslora", "lora_plus", "dora", "vera", "lora_xs", "tiny_lora", "ia3"]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    expert_form: ExpertForm
    init: Literal["default", "minor", "mica", "olora_tail", "olora", "pissa", "milora"]
    frozen: Literal["none", "a", "b"]
    units: int
    tied: bool


@dataclass(frozen=True)
class Policy3(Policy):
    """Its spec was an older one."""

    spec: AdapterSpec3  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class Revision3(Revision):
    """Its spec was an older one."""

    spec: AdapterSpec3  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class Policy2(Policy):
    """Its spec was an older one."""

    spec: AdapterSpec2  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class Revision2(Revision):
    """Its spec was an older one."""

    spec: AdapterSpec2  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class Policy1:
    """A policy had one alias, its head, and neither owner nor state."""

    name: str
    base: str
    spec: AdapterSpec2
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
    spec: AdapterSpec2
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


def _spec(old: AdapterSpec2 | AdapterSpec3) -> AdapterSpec:
    return AdapterSpec(**vars(old))


def _renewed(cls: type[Any]) -> Callable[[Any], Any]:
    """A record as it was, with its spec as it is today."""
    return lambda old: cls(**(vars(old) | {"spec": _spec(old.spec)}))


def _policy(old: Policy1) -> Policy:
    return Policy(
        name=old.name,
        base=old.base,
        spec=_spec(old.spec),
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
        spec=_spec(old.spec),
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
    (2, "policy"): (Policy2, _renewed(Policy)),
    (2, "revision"): (Revision2, _renewed(Revision)),
    (3, "policy"): (Policy3, _renewed(Policy)),
    (3, "revision"): (Revision3, _renewed(Revision)),
    **{(n, cls.__name__.lower()): (cls, lambda old: old) for n in (2, 3) for cls in (Session, Stage, Score)},
}
"""By schema and kind of record: the class it was, and how it is read today."""
