"""What adapters of a recipe share lies beside the base once, and changes nothing of it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pefx.adapters.methods.starts import BEGINNINGS
from pefx.adapters.methods.table import METHODS
from pefx.adapters.shared import with_abstract_shared, with_shared
from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.model import abstract_base
from tests.method_cases import BASE, MODEL, WITH_EXPERTS
from tests.model_small import make_base


def test_it_is_made_once_and_the_base_stays():
    spec = AdapterSpec(method="lora_xs", rank=3, targets=("q_proj",))
    one = with_shared(BASE, [spec, AdapterSpec()])
    assert dict(BASE.shared) == {}
    assert {name: list(sites) for name, sites in one.shared.items()} == {"lora_xs-3": ["q_proj"]}
    two = with_shared(one, [spec, AdapterSpec(method="lora_xs", rank=3, targets=("q_proj", "o_proj"))])
    assert list(two.shared["lora_xs-3"]) == ["q_proj", "o_proj"]
    assert two.shared["lora_xs-3"]["q_proj"] is one.shared["lora_xs-3"]["q_proj"]
    bare = with_shared(two, [])
    bare.shared = BASE.shared
    for left, right in zip(jax.tree.leaves(bare), jax.tree.leaves(BASE), strict=True):
        np.testing.assert_array_equal(left, right)


def test_directions_are_made_once_for_each_base(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFX_CACHE", str(tmp_path))
    specs = [
        AdapterSpec(method="lora_xs", rank=3, targets=("q_proj", "experts.up_proj")),
        AdapterSpec(init="pissa", rank=2, targets=("q_proj",)),
        AdapterSpec(init="milora", rank=3, targets=("q_proj",)),
        AdapterSpec(init="olora", rank=3, targets=("q_proj",)),
    ]
    one = with_shared(BASE, specs, "sha256:one")
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    folder = f"directions-1/sha256-one/{MODEL.precision}"
    # Those of PiSSA are among the three first of LoRA-XS.
    assert kept == {
        f"{folder}/q_proj/first-3",
        f"{folder}/q_proj/last-3",
        f"{folder}/q_proj/orthogonal-3",
        f"{folder}/experts.up_proj/first-3",
    }
    bare = with_shared(BASE, specs)

    def refuse(*args, **kwargs):
        raise AssertionError("made anew")

    for name in ("svd", "qr"):
        monkeypatch.setattr(np.linalg, name, refuse)
    two = with_shared(BASE, specs, "sha256:one")
    for other in (two, bare):
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(left, right)
    with pytest.raises(AssertionError, match="made anew"):
        with_shared(BASE, specs, "sha256:two")


EVERY = [AdapterSpec(name, 3, units=4) for name in METHODS] + [AdapterSpec(rank=3, init=name) for name in BEGINNINGS]  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", EVERY, ids=[*METHODS, *BEGINNINGS])
def test_its_sizes_are_known_before_it_is_made(spec):
    targets = tuple(site for site in WITH_EXPERTS if METHODS[spec.method].refuses(SITES[site]) is None)
    spec = replace(spec, targets=targets)
    real, told = with_shared(BASE, [spec]).shared, with_abstract_shared(abstract_base(MODEL), [spec]).shared
    assert {recipe: list(sites) for recipe, sites in real.items()} == {r: list(sites) for r, sites in told.items()}
    for recipe, sites in real.items():
        for site, own in sites.items():
            assert set(own) == set(told[recipe][site])
            for name, x in own.items():
                other = told[recipe][site][name]
                assert (x.shape, x.dtype) == (other.shape, other.dtype)
                assert x.get_metadata()["out_sharding"] == other.get_metadata()["out_sharding"]


def test_a_rank_above_a_matrix_is_named():
    with pytest.raises(PefxError, match="rank 19 is above the size of 'q_proj', 18 x 33: at most 18"):
        with_shared(BASE, [AdapterSpec(method="lora_xs", rank=19, targets=("q_proj",))])


def test_directions_are_those_of_the_base_itself():
    spec = AdapterSpec(method="lora_xs", rank=3, targets=("q_proj",))
    rounded = make_base(replace(MODEL, weights="int8"))
    with pytest.raises(PefxError, match="'q_proj' is held in int8: its directions are not those of the base"):
        with_shared(rounded, [spec])


def test_veras_pair_is_held_once_for_all_layers_and_experts():
    spec = AdapterSpec(method="vera", rank=3, targets=("q_proj", "experts.up_proj"))
    (held,) = with_shared(BASE, [spec]).shared.values()
    assert held["q_proj"]["a"].shape == (1, 3, 33)
    assert held["experts.up_proj"]["b"].shape == (1, 1, 3, 13)
