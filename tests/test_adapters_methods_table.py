"""Methods as data: the scale of each, and how factors start."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.adapters.methods.table import METHODS, check_shapes, init_adapter, leaf_shapes, scale, uneven
from pefx.adapters.sites import MATRICES, SITES
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.model_small import MODEL


@pytest.mark.parametrize(("method", "rank", "want"), [("lora", 4, 4.0), ("lora", 16, 1.0), ("rslora", 4, 8.0)])
def test_scales(method, rank, want):
    assert scale(AdapterSpec(method=method, rank=rank, alpha=16.0)) == want


@pytest.mark.parametrize("form", ["per_expert", "shared_hidden"])
def test_a_fresh_adapter_has_its_specs_shapes_and_changes_nothing(form):
    spec = AdapterSpec(rank=5, targets=MATRICES, expert_form=form)
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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_as_its_leaves_say(method):
    sites = tuple(site for site, at in SITES.items() if METHODS[method].refuses(at) is None)
    spec = AdapterSpec(method=method, rank=8, targets=sites, units=3)
    adapter = init_adapter(MODEL, spec, 3)
    assert {site: {n: x.shape for n, x in own.items()} for site, own in adapter.items()} == leaf_shapes(MODEL, spec)
    check_shapes(MODEL, spec, leaf_shapes(MODEL, spec))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (AdapterSpec(method="dora"), "method 'dora' cannot adapt 'experts.gate_proj': routed experts have no gains"),
        (AdapterSpec(method="ia3", targets=("kv_b_proj",)), "cannot adapt 'kv_b_proj': keys and values of latent"),
        (
            AdapterSpec(method="vera", expert_form="shared_hidden"),
            "of every expert of 'experts.gate_proj'; expert",
        ),
    ],
)
def test_a_site_without_a_place_for_a_method_is_named(spec, match):
    latent = replace(MODEL, kv_rank=8, nope_head_size=4, rope_head_size=4, value_head_size=4)
    with pytest.raises(PefxError, match=match):
        leaf_shapes(latent if spec.method == "ia3" else MODEL, spec)


def test_leaves_of_a_bank_are_named_where_not_all_learn_alike():
    plain, dora = AdapterSpec(), AdapterSpec(method="dora", targets=("q_proj",))
    assert uneven([plain, AdapterSpec(method="rslora")]) == ()
    assert uneven([plain, AdapterSpec(method="lora_plus")]) == uneven([AdapterSpec(frozen="a")]) == ("a", "b")
    assert uneven([plain, dora]) == ("a", "b", "gains", "magnitude")


def test_each_site_draws_from_its_own_stream_of_the_seed():
    every = init_adapter(MODEL, AdapterSpec(rank=4), 1)
    one = init_adapter(MODEL, AdapterSpec(rank=4, targets=("v_proj",)), 1)
    assert set(one) == {"v_proj"}
    np.testing.assert_array_equal(one["v_proj"]["a"], every["v_proj"]["a"])
    assert (every["q_proj"]["a"] != every["v_proj"]["a"]).all()
    assert (init_adapter(MODEL, AdapterSpec(rank=4), 2)["q_proj"]["a"] != every["q_proj"]["a"]).all()


def test_lengths_of_rows_have_no_place_beside_a_bias():
    biased, spec = replace(MODEL, attention_bias=True), AdapterSpec(method="dora", targets=("o_proj", "v_proj"))
    assert set(leaf_shapes(MODEL, spec)) == {"o_proj", "v_proj"}
    with pytest.raises(PefxError, match="method 'dora' cannot adapt 'v_proj': this base adds a bias there"):
        leaf_shapes(biased, spec)
    assert set(leaf_shapes(biased, replace(spec, method="ia3"))) == {"o_proj", "v_proj"}
