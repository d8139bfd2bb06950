"""Methods as data: the scale of each, and how factors start."""

import numpy as np
import pytest

from pefx.adapters.methods.table import init_adapter, leaf_shapes, scale
from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from tests.model_small import MODEL


@pytest.mark.parametrize(("method", "rank", "want"), [("lora", 4, 4.0), ("lora", 16, 1.0), ("rslora", 4, 8.0)])
def test_scales(method, rank, want):
    assert scale(AdapterSpec(method=method, rank=rank, alpha=16.0)) == want
    assert set(SCALES) == {"lora", "rslora"}


@pytest.mark.parametrize("form", ["per_expert", "shared_hidden"])
def test_a_fresh_adapter_has_its_specs_shapes_and_changes_nothing(form):
    spec = AdapterSpec(rank=5, targets=tuple(SITES), expert_form=form)
    adapter = init_adapter(MODEL, spec, 3)
    shapes = leaf_shapes(MODEL, spec)
    assert {site: {n: x.shape for n, x in pair.items()} for site, pair in adapter.items()} == shapes
    for pair in adapter.values():
        assert pair["a"].dtype == pair["b"].dtype == np.float32
        assert not pair["b"].any()
        bound = pair["a"].shape[-1] ** -0.5
        assert np.abs(pair["a"]).max() <= bound
        # The spread of a uniform law, far from a normal one's.
        np.testing.assert_allclose(pair["a"].std(), bound / 3**0.5, rtol=0.2)


def test_each_site_draws_from_its_own_stream_of_the_seed():
    every = init_adapter(MODEL, AdapterSpec(rank=4), 1)
    one = init_adapter(MODEL, AdapterSpec(rank=4, targets=("v_proj",)), 1)
    assert set(one) == {"v_proj"}
    np.testing.assert_array_equal(one["v_proj"]["a"], every["v_proj"]["a"])
    assert (every["q_proj"]["a"] != every["v_proj"]["a"]).all()
    assert (init_adapter(MODEL, AdapterSpec(rank=4), 2)["q_proj"]["a"] != every["q_proj"]["a"]).all()
