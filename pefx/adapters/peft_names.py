"""The names that the modules of a base have in PEFT files, by site, layer and expert, and back."""

import re
from functools import cache
from typing import NamedTuple

from pefx.adapters.sites import MATRICES, SITES, has_site, layers_with, parameter
from pefx.config import ModelConfig
from pefx.families.tables import FAMILIES, TOP_TENSORS

PREFIX = "base_model.model."
KEY = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
UNEMBED = TOP_TENSORS["unembed"].removesuffix(".weight")
# A layer's routed experts as one module. PEFT wraps it once for each of its two parameters, one wrap in the other.
EXPERTS = re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.experts(?P<wraps>(?:\.base_layer)*)")
# ... and their projections as modules without the number of an expert.
STACKED = re.compile(
    r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<name>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)"
)
LONG = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


class Place(NamedTuple):
    """A site in a layer of the base (0-based); `expert` is -1 where the site is not one expert's."""

    site: str
    layer: int
    expert: int = -1


def module_name(config: ModelConfig, place: Place) -> str:
    """The module that holds a place's matrix, as in `model.layers.3.mlp.experts.7.up_proj`."""
    if SITES[place.site].kind == "unembed":
        return UNEMBED
    name = FAMILIES[config.family].tensors[parameter(place.site) or ""].removesuffix(".weight")
    return f"model.layers.{place.layer}.{name.format(e=place.expert)}"


def key(module: str, factor: str) -> str:
    """The name of a tensor; `factor` is A or B."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def places_of(module: str, config: ModelConfig) -> list[Place]:
    """The places whose matrix is that of a module; none where it is no site of this family."""
    if module == UNEMBED:
        return [Place("unembed", 0)]
    matches = [(site, pattern.fullmatch(module)) for site, pattern in _modules(config.family)]
    return [Place(site, int(m[1]), int(m[2]) if m.re.groups > 1 else -1) for site, m in matches if m]


@cache
def _modules(family: str) -> list[tuple[str, re.Pattern[str]]]:
    """Names of a family's modules by site: groups are the layer, and the expert where each has its own."""
    tensors = FAMILIES[family].tensors
    found = []
    for site in MATRICES:
        if tensor := tensors.get(parameter(site) or ""):
            name = re.escape(tensor.removesuffix(".weight")).replace(re.escape("{e}"), r"(\d+)")
            found.append((site, re.compile(rf"model\.layers\.(\d+)\.{name}")))
    return found


def all_names(config: ModelConfig, site: str, layer: int) -> list[str]:
    """What a site of a layer is called as a target: its module (its first expert's), and parameters it is a part of."""
    experts = SITES[site].kind == "experts"
    module = module_name(config, Place(site, layer, 0 if experts else -1))
    leaf = site.rpartition(".")[2]
    fused = leaf if leaf == "down_proj" else "gate_up_proj"
    stacked = [f"model.layers.{layer}.mlp.experts.{name}" for name in dict.fromkeys((fused, leaf))]
    return [module, *stacked] if experts else [module, f"{module}.weight"]


def sites_named(target: str, config: ModelConfig) -> set[str]:
    """The sites of this base that a name of `target_modules` or `target_parameters` means: by the end of theirs."""
    end = f".{target}"
    return {site for site, names in _all(config).items() if any(x == target or x.endswith(end) for x in names)}


@cache
def _all(config: ModelConfig) -> dict[str, list[str]]:
    """What each site of a base is called, in all its layers."""
    own = [site for site in MATRICES if has_site(config, site)]
    return {site: [x for layer in layers_with(config, site) for x in all_names(config, site, layer)] for site in own}
