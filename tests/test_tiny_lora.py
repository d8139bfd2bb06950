"""TinyLoRA: a few numbers for each matrix, of fixed random matrices between the base's own directions."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.methods.table import leaf_shapes
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.method_cases import BASE, MODEL, adapted, changed, shared, spec_of, weights


def test_the_small_matrix_is_a_sum_of_fixed_ones():
    spec = spec_of("tiny_lora", rank=2, units=3)
    adapter, held = changed(spec), shared(spec)
    for site, got in adapted(adapter, spec).items():
        w, own = weights(site), held[site]
        u, s, v = np.linalg.svd(w, full_matrices=False)
        np.testing.assert_allclose(np.linalg.norm(own["a"], axis=-1) ** 2, s[..., :2], rtol=1e-4)
        np.testing.assert_allclose(
            np.swapaxes(own["b"], -1, -2) @ own["a"], (u[..., :2] * s[..., None, :2]) @ v[..., :2, :], atol=1e-5
        )
        small = np.einsum("...u,...uk->...k", adapter[site]["vector"][..., 0, :].astype(np.float64), own["projections"])
        small = small.reshape(*small.shape[:-1], 2, 2)
        np.testing.assert_allclose(got, w + np.swapaxes(own["b"], -1, -2) @ small @ own["a"], rtol=0, atol=1e-5)


def test_tied_layers_share_one_vector():
    free, tied = (spec_of("tiny_lora", rank=2, units=1, tied=tied) for tied in (False, True))
    adapter = changed(tied)
    assert {x.shape[0] for leaves in adapter.values() for x in leaves.values()} == {1}
    spread = {
        site: {"vector": np.repeat(own["vector"], weights(site).shape[0], axis=0)} for site, own in adapter.items()
    }
    one, other = adapted(adapter, tied), adapted(spread, free)
    for site in one:
        np.testing.assert_array_equal(one[site], other[site])


def test_tied_sites_share_one_vector():
    free, tied = (spec_of("tiny_lora", rank=2, units=3, tied=tied) for tied in (False, "all"))
    adapter = changed(tied)
    (vector,) = (own["vector"] for own in adapter.values())
    assert vector.shape == (1, 1, 3)
    spread = {
        site: {"vector": np.broadcast_to(vector, (*weights(site).shape[:-2], 1, 3)).copy()} for site in tied.targets
    }
    one, other = adapted(adapter, tied), adapted(spread, free)
    assert set(one) == set(tied.targets)
    for site in one:
        np.testing.assert_array_equal(one[site], other[site])
        assert np.abs(one[site] - weights(site)).max() > 1e-3


def test_what_all_sites_share_lies_at_one_of_whole_layers():
    experts = ("experts.up_proj", "experts.gate_proj")
    spec = spec_of("tiny_lora", tied="all", targets=(*experts, "up_proj", "o_proj"))
    assert leaf_shapes(MODEL, spec) == {"o_proj": {"vector": (1, 1, 2)}}
    with pytest.raises(PefxError, match=r"tied is 'all', of sites of routed experts only .* name another target too"):
        leaf_shapes(MODEL, spec_of("tiny_lora", tied="all", targets=experts))


def test_half_of_what_shares_has_no_room():
    spec = spec_of("tiny_lora", tied="all", targets=("q_proj", "o_proj"))
    with pytest.raises(PefxError, match="the bank has no site 'o_proj', which adapters of method 'tiny_lora' have"):
        empty_bank(MODEL, AdapterSpec(rank=2, targets=("q_proj",)), 2, [spec])
    fewer = replace(spec, targets=("q_proj",))
    bank = empty_bank(MODEL, AdapterSpec(rank=2, targets=spec.targets), 2, [fewer])
    with pytest.raises(PefxError, match="the bank has no room for method 'tiny_lora'"):
        load_adapter(bank, 0, changed(spec), spec, with_shared(BASE, [spec]))


def test_an_adapter_has_as_many_numbers_as_units():
    assert {x.shape[-2:] for leaves in changed(spec_of("tiny_lora", units=1)).values() for x in leaves.values()} == {
        (1, 1)
    }
