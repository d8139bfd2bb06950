"""Law 6, never the wrong adapter, in the catalog: a wrong name, base, rank or target is told, and changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.catalog import Catalog, Provenance, require_base
from pefx.store.encoding import encode
from pefx.store.keyspace import Write

SPEC = AdapterSpec(rank=2, targets=("q_proj", "experts.up_proj"))
BASE, OTHER_BASE = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ABOUT: Provenance = {"step": 0, "seeds": {"run": 0}, "config": {}, "data_fingerprint": "", "metrics": {}}


def adapter(value: float = 1.0, rank: int = 2) -> dict[str, dict[str, np.ndarray]]:
    return {
        "q_proj": {factor: np.full((3, rank, 8), value, np.float32) for factor in "ab"},
        "experts.up_proj": {factor: np.full((2, 4, rank, 8), value, np.float32) for factor in "ab"},
    }


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    for value, policy in enumerate(["alice", "bob"]):
        catalog.commit(policy, adapter=adapter(float(value)), spec=SPEC, base=BASE, **ABOUT)
    return catalog


def refused(kind: str, *parts: str, call: Callable[[], Any]) -> None:
    with pytest.raises(PefxError) as caught:
        call()
    assert caught.value.kind == kind
    assert all(part in str(caught.value) for part in parts), caught.value


def test_unknown_names(catalog: Catalog) -> None:
    for name in ("carol", "alic", "alice2", "ALICE", "alice/"[:-1] + "/x"):
        for number in (None, 1):
            refused("unknown_policy", f"'{name}'", call=lambda n=name, k=number: catalog.get(n, k))
        refused("unknown_policy", f"'{name}'", call=lambda n=name: catalog.log(n))
    for number in (0, -1, 2, 10**10, True):
        refused("unknown_revision", "alice", call=lambda k=number: catalog.get("alice", k))


@pytest.mark.parametrize(
    ("kind", "parts", "changes"),
    [
        ("wrong_base", ("alice", BASE, OTHER_BASE), {"base": OTHER_BASE}),
        ("wrong_base", ("alice", "sha256:"), {"base": "md5:1"}),
        ("wrong_spec", ("alice", "'rank' is 2", "not 4"), {"spec": replace(SPEC, rank=4), "adapter": adapter(2.0, 4)}),
        ("wrong_spec", ("alice", "'alpha' is 16.0", "not 8.0"), {"spec": replace(SPEC, alpha=8.0)}),
        ("wrong_spec", ("alice", "'method' is 'lora'"), {"spec": replace(SPEC, method="rslora")}),
        ("wrong_spec", ("alice", "'targets'"), {"spec": replace(SPEC, targets=(*SPEC.targets, "o_proj"))}),
        ("wrong_rank", ("alice", "'q_proj.a' has rank 3", "says 2"), {"adapter": adapter(2.0, 3)}),
        ("wrong_target", ("'lm_head' is not known", "unembed"), {"spec": replace(SPEC, targets=("lm_head",))}),
        ("wrong_target", ("alice", "'o_proj'"), {"adapter": {"o_proj": adapter()["q_proj"]}}),
        (
            "wrong_target",
            ("alice", "'q_proj'", "needs 'a' and 'b'"),
            {"adapter": {"q_proj": {"a": np.ones((3, 2, 8))}}},
        ),
        ("wrong_target", ("alice", "[2, 4, 2, 8]"), {"adapter": {"q_proj": adapter()["experts.up_proj"]}}),
        ("wrong_target", ("alice", "[3, 2, 8]"), {"adapter": {"experts.up_proj": adapter()["q_proj"]}}),
        (
            "wrong_target",
            ("alice", "'q_proj'", "[2, 3] layers"),
            {"adapter": {"q_proj": {"a": np.ones((3, 2, 8), np.float32), "b": np.ones((2, 2, 8), np.float32)}}},
        ),
        ("invalid_input", ("alice", "no tensors"), {"adapter": {}}),
        ("not_finite", ("alice", "NaN"), {"adapter": adapter(float("nan"))}),
    ],
)
def test_what_does_not_fit_the_policy_is_refused(
    catalog: Catalog, kind: str, parts: tuple[str, ...], changes: dict[str, Any]
) -> None:
    given = {"adapter": adapter(2.0), "spec": SPEC, "base": BASE, **changes}
    refused(kind, *parts, call=lambda: catalog.commit("alice", **given, **ABOUT))
    assert [revision.number for revision in catalog.log("alice")] == [1]
    assert catalog.load(catalog.get("alice"))["q_proj"]["a"][0, 0, 0] == 0.0


def test_targets_in_another_order_are_the_same_spec(catalog: Catalog) -> None:
    turned = replace(SPEC, targets=SPEC.targets[::-1])
    assert catalog.commit("alice", adapter=adapter(0.0), spec=turned, base=BASE, **ABOUT) == catalog.get("alice")
    assert catalog.commit("alice", adapter=adapter(5.0), spec=turned, base=BASE, **ABOUT).number == 2


def test_a_revision_of_another_base_is_told(catalog: Catalog) -> None:
    require_base(catalog.get("alice"), BASE)
    refused("wrong_base", "alice@1", BASE, OTHER_BASE, call=lambda: require_base(catalog.get("alice"), OTHER_BASE))


def test_swapped_weights_and_records_are_noticed(catalog: Catalog) -> None:
    alice, bob = catalog.get("alice"), catalog.get("bob")
    refused("damaged", "alice@1", call=lambda: catalog.load(replace(alice, blob=bob.blob)))
    refused("damaged", "alice@1", call=lambda: catalog.load(replace(alice, base=OTHER_BASE)))
    refused("damaged", "alice@1", call=lambda: catalog.load(replace(alice, spec=replace(SPEC, alpha=1.0))))
    space = catalog.space
    space.transact([Write("revision/alice@0000000001", encode(bob))])
    refused("damaged", "alice@1", "bob@1", call=lambda: catalog.get("alice", 1))
    space.transact([Write("policy/alice", encode(catalog.policy("bob")))])
    refused("damaged", "'alice'", "'bob'", call=lambda: catalog.get("alice"))
