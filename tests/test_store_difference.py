"""How revisions differ: norms without large matrices are those of the large matrices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefx.adapters.methods.table import leaf_shapes, scale
from pefx.config import AdapterSpec, ModelConfig
from pefx.store.catalog import Catalog
from pefx.store.difference import difference
from tests.peft_cases import delta, random_factors
from tests.store_small import BASE, OTHER_BASE, commit, fresh, provenance, refused

MODEL = ModelConfig(hidden=10, layers=3, heads=2, kv_heads=1, head_size=4, dense_hidden=12, expert_hidden=7, experts=5)


def put(catalog: Catalog, name: str, spec: AdapterSpec, seed: int, **changes: Any) -> None:
    weights = random_factors(MODEL, spec, seed)
    catalog.commit(name, adapter=weights, spec=spec, base=BASE, **provenance(**changes))


@pytest.mark.parametrize("form", ["per_expert", "shared_hidden"])
def test_norms_are_those_of_the_products(tmp_path: Path, form: Any) -> None:
    catalog = fresh(tmp_path)
    targets = ("q_proj", "experts.gate_proj", "experts.down_proj")
    one = AdapterSpec(rank=3, alpha=5.0, targets=targets, expert_form=form)
    other = AdapterSpec(method="rslora", rank=2, alpha=7.0, targets=targets, expert_form="per_expert")
    put(catalog, "ann", one, 1)
    put(catalog, "bob", other, 2, step=20, metrics={})
    found = difference(catalog, "ann", "bob@1")
    dense = [
        delta(dict(catalog.load(catalog.get(name))), scale(spec), MODEL)
        for name, spec in (("ann", one), ("bob", other))
    ]
    assert [site.site for site in found.sites] == list(catalog.load(catalog.get("ann")))
    for site in found.sites:
        before, after = (x[site.site] for x in dense)
        wanted = [np.linalg.norm(before), np.linalg.norm(after), np.linalg.norm(after - before)]
        np.testing.assert_allclose([site.before, site.after, site.change], wanted, rtol=1e-6)
    assert found.fields["step"] == (10, 20)
    assert found.fields["spec.rank"] == (3, 2)
    assert found.fields["metrics.heldout"] == (2.5, None)
    assert "policy" not in found.fields
    assert not found.same_content


def test_a_site_that_only_one_has(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    put(catalog, "ann", AdapterSpec(rank=2, targets=("q_proj",)), 1)
    put(catalog, "bob", AdapterSpec(rank=2, targets=("q_proj", "o_proj")), 1)
    found = {site.site: site for site in difference(catalog, "ann", "bob").sites}
    assert found["o_proj"].before == 0.0
    assert found["o_proj"].change == pytest.approx(found["o_proj"].after)
    assert found["q_proj"].change == pytest.approx(0.0, abs=1e-5)
    assert set(leaf_shapes(MODEL, AdapterSpec(rank=2))) > set(found)


def test_the_same_content_and_another_base(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    commit(catalog, "ann", 1)
    commit(catalog, "bob", 1)
    assert difference(catalog, "ann", "bob").same_content
    spec = AdapterSpec(rank=2, targets=("q_proj",))
    catalog.commit("far", adapter=random_factors(MODEL, spec), spec=spec, base=OTHER_BASE, **provenance())
    assert "belongs to base" in refused("wrong_base", difference, catalog, "ann", "far")
    refused("unknown_revision", difference, catalog, "ann", "bob@2")


def test_other_sizes_do_not_compare(tmp_path: Path) -> None:
    """The catalog does not know the base's shape, so it holds what claims to be of one base and cannot be."""
    catalog = fresh(tmp_path)
    put(catalog, "ann", AdapterSpec(rank=2, targets=("q_proj",)), 1)
    whole = catalog.load(catalog.get("ann"))["q_proj"]
    for name, cut in (("layers", np.s_[:2]), ("width", np.s_[..., :3])):
        weights = {"q_proj": {factor: x[cut] for factor, x in whole.items()}}
        catalog.commit(name, adapter=weights, spec=catalog.get("ann").spec, base=BASE, **provenance())
        assert "'q_proj' has other sizes" in refused("wrong_base", difference, catalog, "ann", name)
