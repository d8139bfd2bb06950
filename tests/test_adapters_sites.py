"""The table of sites: factor shapes for every kind of layer and both expert forms."""

from dataclasses import replace

import pytest

from pefx.adapters.methods.table import check_shapes, leaf_shapes
from pefx.adapters.sites import MATRICES, SITES, has_site, layer_count, layers_with, width
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.model_small import MODEL, variant

LATENT = variant(query_rank=7, kv_rank=11, nope_head_size=5, rope_head_size=4, value_head_size=2)
WANTED_LATENT = {
    "q_a_proj": ((3, 33), (3, 7)),
    "q_b_proj": ((3, 7), (3, 27)),
    "kv_a_proj": ((3, 33), (3, 15)),
    "kv_b_proj": ((3, 11), (3, 21)),
    "o_proj": ((3, 6), (3, 33)),
}
WANTED = {  # layers, (experts,) and widths at MODEL's odd sizes
    "q_proj": ((3, 33), (3, 18)),
    "k_proj": ((3, 33), (3, 6)),
    "v_proj": ((3, 33), (3, 6)),
    "o_proj": ((3, 18), (3, 33)),
    "gate_proj": ((1, 33), (1, 21)),
    "up_proj": ((1, 33), (1, 21)),
    "down_proj": ((1, 21), (1, 33)),
    "experts.gate_proj": ((2, 5, 33), (2, 5, 13)),
    "experts.up_proj": ((2, 5, 33), (2, 5, 13)),
    "experts.down_proj": ((2, 5, 13), (2, 5, 33)),
    "unembed": ((1, 33), (1, 61)),
}


def test_every_site_has_its_layers_and_widths():
    shapes = leaf_shapes(MODEL, AdapterSpec(rank=3, targets=MATRICES))
    assert set(WANTED) == set(shapes)
    for site, (a, b) in WANTED.items():
        assert shapes[site] == {"a": (*a[:-1], 3, a[-1]), "b": (*b[:-1], 3, b[-1])}


def test_latent_attention_has_sites_of_its_own():
    shapes = leaf_shapes(LATENT, AdapterSpec(rank=3, targets=MATRICES))
    for site, (a, b) in WANTED_LATENT.items():
        assert shapes[site] == {"a": (*a[:-1], 3, a[-1]), "b": (*b[:-1], 3, b[-1])}
    assert not {"q_proj", "k_proj", "v_proj"} & set(shapes)
    assert set(leaf_shapes(LATENT, AdapterSpec())) == set(shapes) - {"unembed"}
    direct = leaf_shapes(replace(LATENT, query_rank=0), AdapterSpec(rank=3))
    assert direct["q_proj"]["b"] == (3, 3, 27)
    assert not {"q_a_proj", "q_b_proj"} & set(direct)


def test_shared_hidden_drops_the_expert_axis_on_the_hidden_side_only():
    split = leaf_shapes(MODEL, AdapterSpec(rank=3, targets=MATRICES))
    shared = leaf_shapes(MODEL, AdapterSpec(rank=3, targets=MATRICES, expert_form="shared_hidden"))
    for site in split:
        for factor in ("a", "b"):
            dropped = (site, factor) in {
                ("experts.gate_proj", "a"), ("experts.up_proj", "a"), ("experts.down_proj", "b")
            }  # fmt: skip
            want = split[site][factor]
            assert shared[site][factor] == ((2, *want[2:]) if dropped else want)


def test_sites_without_a_layer_are_left_out():
    dense = leaf_shapes(variant(dense_layers=(0, 1, 2)), AdapterSpec())
    assert set(dense) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    sparse = leaf_shapes(variant(dense_layers=()), AdapterSpec())
    assert not {"gate_proj", "up_proj", "down_proj"} & set(sparse)
    assert sparse["experts.gate_proj"]["a"][0] == 3


def test_layers_past_the_end_do_not_count():
    config = variant(dense_layers=(1, 7))
    assert [layer_count(config, kind) for kind in ("attention", "dense", "experts", "unembed")] == [3, 1, 2, 1]


def test_an_unknown_target_is_refused_by_name():
    with pytest.raises(PefxError, match=r"adapter target 'q' is not known; choose from q_proj, k_proj") as caught:
        leaf_shapes(MODEL, AdapterSpec(targets=("q_proj", "q")))
    assert caught.value.kind == "bad_adapter"


def test_a_spec_that_touches_nothing_is_refused():
    with pytest.raises(PefxError, match="none of the adapter's targets"):
        leaf_shapes(variant(dense_layers=()), AdapterSpec(targets=("gate_proj",)))
    with pytest.raises(PefxError, match="none of the adapter's targets"):
        leaf_shapes(MODEL, AdapterSpec(targets=()))


def test_widths_are_the_configs():
    assert {width(MODEL, site.reads) for site in SITES.values()} - {0} == {33, 18, 21, 13}


def test_shared_experts_are_one_dense_layer_beside_the_routed_ones():
    shapes = leaf_shapes(variant(shared_experts=2), AdapterSpec(rank=3, targets=MATRICES))
    assert set(shapes) - set(WANTED) == {f"shared_experts.{name}_proj" for name in ("gate", "up", "down")}
    assert shapes["shared_experts.up_proj"] == {"a": (2, 3, 33), "b": (2, 3, 26)}
    assert shapes["shared_experts.down_proj"] == {"a": (2, 3, 26), "b": (2, 3, 33)}


def test_layers_of_a_site_are_in_the_order_of_its_factors() -> None:
    config = variant(layers=5, dense_layers=(1, 3), shared_experts=1, tied_embedding=False)
    assert layers_with(config, "q_proj") == [0, 1, 2, 3, 4]
    assert layers_with(config, "down_proj") == [1, 3]
    assert layers_with(config, "experts.up_proj") == layers_with(config, "shared_experts.up_proj") == [0, 2, 4]
    assert layers_with(config, "unembed") == [0]
    assert layers_with(config, "kv_a_proj") == []
    for site in SITES:
        if has_site(config, site):
            assert len(layers_with(config, site)) == layer_count(config, SITES[site].kind)


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    spec = AdapterSpec(rank=4, targets=("q_proj", "up_proj"))
    shapes = leaf_shapes(MODEL, spec)
    check_shapes(MODEL, spec, shapes)
    wrong = {
        "lacks site 'up_proj'": {"q_proj": shapes["q_proj"]},
        "has site 'k_proj'": {**shapes, "k_proj": shapes["q_proj"]},
        r"'q_proj' has factors \['a'\], not a and b": {**shapes, "q_proj": {"a": shapes["q_proj"]["a"]}},
        r"q_proj.b has shape \(1, 2\)": {**shapes, "q_proj": {**shapes["q_proj"], "b": (1, 2)}},
    }
    for match, found in wrong.items():
        with pytest.raises(PefxError, match=match) as caught:
            check_shapes(MODEL, spec, found)
        assert caught.value.kind == "bad_adapter"
