"""Names of modules: from places and back."""

import pytest

from pefx.adapters.peft_names import Place, all_names, module_name, places_of, sites_named
from pefx.adapters.sites import SITES, layers_with
from tests.peft_cases import CONFIGS, sites_of


@pytest.mark.parametrize("name", CONFIGS)
def test_every_place_has_a_name_of_its_own(name: str) -> None:
    config, seen = CONFIGS[name], set()
    for site in sites_of(config):
        for layer in layers_with(config, site):
            for e in range(config.experts) if SITES[site].kind == "experts" else (-1,):
                place = Place(site, layer, e)
                module = module_name(config, place)
                assert places_of(module, config) == [place]
                assert module not in seen
                seen.add(module)


def test_names_are_those_of_the_family() -> None:
    config = CONFIGS["deepseek_v3"]
    assert module_name(config, Place("kv_a_proj", 2)) == "model.layers.2.self_attn.kv_a_proj_with_mqa"
    assert module_name(config, Place("experts.up_proj", 1, 3)) == "model.layers.1.mlp.experts.3.up_proj"
    assert module_name(config, Place("shared_experts.up_proj", 1)) == "model.layers.1.mlp.shared_experts.up_proj"
    assert module_name(config, Place("unembed", 0)) == "lm_head"
    assert places_of("model.layers.1.mlp.gate", config) == []
    assert "model.layers.1.mlp.experts.gate_up_proj" in all_names(config, "experts.up_proj", 1)


@pytest.mark.parametrize(
    ("target", "sites"),
    [
        ("o_proj", {"o_proj"}),
        ("k_proj", set()),
        ("gate_proj", {"gate_proj", "experts.gate_proj", "shared_experts.gate_proj"}),
        ("layers.0.mlp.gate_proj.weight", {"gate_proj"}),
        ("mlp.gate_proj.weight", {"gate_proj"}),
        ("experts.gate_up_proj", {"experts.gate_proj", "experts.up_proj"}),
        ("lm_head", {"unembed"}),
    ],
)
def test_a_target_means_sites_by_the_ends_of_their_names(target: str, sites: set[str]) -> None:
    assert sites_named(target, CONFIGS["deepseek_v3"]) == sites
