"""The matrices of a site, in the order of an adapter's layers, whatever segments they are in."""

import numpy as np
import pytest

from pefx.adapters.matrices import held_by, matrices
from pefx.adapters.sites import MATRICES, SITES, has_site, layer_count, width
from tests.method_cases import BASE, MODEL


@pytest.mark.parametrize("site", [site for site in MATRICES if has_site(MODEL, site)])
def test_they_have_the_sites_sizes_and_come_from_its_layers(site):
    found, at = np.asarray(matrices(BASE, site)), SITES[site]
    experts = (MODEL.experts,) if at.kind == "experts" else ()
    assert found.shape == (layer_count(MODEL, at.kind), *experts, width(MODEL, at.writes), width(MODEL, at.reads))
    for holder, name, layers in held_by(BASE, site):
        own = np.asarray(getattr(holder, name)[...])
        own = np.swapaxes(own, -1, -2) if experts else own
        np.testing.assert_array_equal(found[layers], own.reshape(found[layers].shape))
