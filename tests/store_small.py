"""Small adapters, commits and refusals for the tests of the catalog."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog, Provenance
from pefx.store.commits import Draft
from pefx.store.keyspace import Keyspace
from pefx.store.records import Revision

SPEC = AdapterSpec(rank=2, targets=("q_proj", "v_proj"))
BASE = "sha256:" + "a" * 64
OTHER_BASE = "sha256:" + "b" * 64


def adapter(seed: int = 0, rank: int = 2) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        site: {factor: rng.normal(size=(3, rank, 24)).astype(np.float32) for factor in ("a", "b")}
        for site in ("q_proj", "v_proj")
    }


def provenance(**changes: Any) -> Provenance:
    usual: dict[str, Any] = {
        "step": 10,
        "seeds": {"run": 1},
        "config": {"name": "tiny", "shape": (1, 2)},
        "data_fingerprint": "sha256:00",
        "metrics": {"heldout": 2.5},
    }
    return usual | changes  # type: ignore[return-value]


def draft(policy: str, seed: int = 0, **changes: Any) -> Draft:
    fields: dict[str, Any] = {"adapter": adapter(seed), "spec": SPEC, "base": BASE, **provenance(), **changes}
    return Draft(policy=policy, **fields)


def commit(catalog: Catalog, policy: str, seed: int = 0, **changes: Any) -> Revision:
    return catalog.commit(policy, adapter=adapter(seed), spec=SPEC, base=BASE, **provenance(**changes))


def refused(kind: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(PefxError) as caught:
        call(*args, **kwargs)
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bits(catalog: Catalog, revision: Revision) -> dict[str, bytes]:
    return {f"{s}.{f}": x.tobytes() for s, pair in catalog.load(revision).items() for f, x in pair.items()}


def everything(catalog: Catalog) -> dict[str, bytes]:
    """All keys and values."""
    keys = catalog.space.keys("", "\x7f")
    return {key: entry.value or b"" for key, entry in zip(keys, catalog.space.read_many(keys), strict=True)}


def fresh(tmp_path: Path, name: str = "catalog") -> Catalog:
    return Catalog.open(tmp_path / name, create=True)


def rival_first(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Before the next transaction, once, `change` happens."""
    begin = Keyspace.begin

    def beaten(self: Keyspace, writes: Any) -> Any:
        monkeypatch.setattr(Keyspace, "begin", begin)
        change()
        return begin(self, writes)

    monkeypatch.setattr(Keyspace, "begin", beaten)
