"""The methods by name: what an adapter of a spec holds on a base, how it is scaled, how it starts."""

from collections.abc import Iterable, Mapping

import numpy as np

from pefx.adapters.methods.delta_mem import DELTA_MEM, DELTA_STATE
from pefx.adapters.methods.dora import DORA
from pefx.adapters.methods.ia3 import IA3
from pefx.adapters.methods.lora import LORA, LORA_PLUS, RSLORA
from pefx.adapters.methods.lora_ga import LORA_GA
from pefx.adapters.methods.lora_xs import LORA_XS
from pefx.adapters.methods.method import Method, sizes
from pefx.adapters.methods.starts import BEGINNINGS
from pefx.adapters.methods.tiny_lora import TINY_LORA
from pefx.adapters.methods.vera import VERA
from pefx.adapters.sites import SITES, has_bias, has_experts, has_site, home, layer_count, width
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError

Adapter = dict[str, dict[str, np.ndarray]]  # {site: {leaf: [L, (E,) rows, columns]}}; LoRA's leaves are "a" and "b"
Shapes = dict[str, dict[str, tuple[int, ...]]]  # by site and leaf

METHODS: dict[str, Method] = {
    "lora": LORA,
    "rslora": RSLORA,
    "lora_plus": LORA_PLUS,
    "dora": DORA,
    "vera": VERA,
    "lora_xs": LORA_XS,
    "tiny_lora": TINY_LORA,
    "ia3": IA3,
    "lora_ga": LORA_GA,
    "delta_mem": DELTA_MEM,
    "delta_state": DELTA_STATE,
}
GAINED = ("gains", "magnitude")  # leaves of which there are gains
MEMORY_RANKS = 8  # of memories: kernels read their rows by so many
FACTOR = {"reads": "a", "writes": "b"}  # by side


def scale(spec: AdapterSpec) -> float:
    """The factor on an adapter's product."""
    return METHODS[spec.method].scale(spec.alpha, spec.rank)


def adapted_sites(config: ModelConfig, spec: AdapterSpec) -> list[str]:
    """The sites of a base that an adapter changes: its targets, less those that the base has no layer for.

    Raises PefxError for a target that is no site or that the method has no place at, or if no target is in the base.
    """
    method, found = METHODS[spec.method], []
    for target in spec.targets:
        if target not in SITES:
            raise PefxError(f"adapter target '{target}' is not known; choose from {', '.join(SITES)}", "bad_adapter")
        if not has_site(config, target):
            continue
        site = SITES[target]
        if reason := method.refuses(site):
            raise PefxError(f"method '{spec.method}' cannot adapt '{target}': {reason}", "wrong_target")
        if not method.biased and has_bias(config, target):
            told = f"method '{spec.method}' cannot adapt '{target}': this base adds a bias there"
            raise PefxError(told, "wrong_target")
        if site.kind == "memory" and spec.rank % MEMORY_RANKS:
            raise PefxError(f"the rank of a memory must be a multiple of {MEMORY_RANKS}, got {spec.rank}", "wrong_rank")
        from_base = method.derive is not None or spec.init != "default"
        if from_base and site.kind == "experts" and spec.expert_form == "shared_hidden":
            what = f"method '{spec.method}'" if method.derive is not None else f"init '{spec.init}'"
            told = f"{what} has factors of every expert of '{target}'; expert_form must be per_expert"
            raise PefxError(told, "wrong_form")
        found.append(target)
    if not found:
        raise PefxError(f"none of the adapter's targets {spec.targets} exists in this base", "bad_adapter")
    return found


def leaf_shapes(config: ModelConfig, spec: AdapterSpec) -> Shapes:
    """Shapes of what an adapter holds, by site and leaf. Where all sites share it, one of them holds it, see `home`.

    Raises PefxError as `adapted_sites`, and where all sites share what only experts' sites could hold.
    """
    method, shapes, targets = METHODS[spec.method], {}, adapted_sites(config, spec)
    if spec.tied == "all":
        holder = home(targets, targets)
        if holder is None:
            told = f"tied is 'all', of sites of routed experts only ({', '.join(targets)}); name another target too"
            raise PefxError(told, "wrong_target")
        targets = [holder]
    for target in targets:
        site = SITES[target]
        named = sizes(spec.rank, spec.units, spec.states)
        named |= {side: width(config, getattr(site, side)) for side in ("reads", "writes")}
        shapes[target] = {
            name: (
                1 if spec.tied else layer_count(config, site.kind),
                *((config.experts,) if has_experts(target, FACTOR[leaf.side], spec) else ()),
                named[leaf.rows],
                named[leaf.columns],
            )
            for name, leaf in method.leaves.items()
        }
    return shapes


def check_shapes(config: ModelConfig, spec: AdapterSpec, found: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Raise PefxError (kind "bad_adapter") unless these are the shapes, by site and leaf, that a spec means here."""
    shapes = leaf_shapes(config, spec)
    if set(shapes) != set(found):
        odd = min(set(shapes) ^ set(found))
        wrong = "lacks" if odd in shapes else "has"
        raise PefxError(f"the adapter {wrong} site '{odd}'; its spec on this base means {list(shapes)}", "bad_adapter")
    for site, leaves in shapes.items():
        if set(found[site]) != set(leaves):
            told = f"site '{site}' has factors {sorted(found[site])}, not {' and '.join(leaves)}"
            raise PefxError(told, "bad_adapter")
        for name, shape in leaves.items():
            if found[site][name] != shape:
                raise PefxError(f"{site}.{name} has shape {found[site][name]}; this base needs {shape}", "bad_adapter")


def init_adapter(config: ModelConfig, spec: AdapterSpec, seed: int, pairs: Adapter | None = None) -> Adapter:
    """A fresh adapter, whose delta is zero. Float32. `pairs` are A0 and B0 of a start from the base, by site.

    Each leaf of a site draws from one stream of `seed`, so that a site does not depend on which others exist.
    """
    leaves, adapter, start = METHODS[spec.method].leaves, {}, BEGINNINGS.get(spec.init)
    for site, shapes in sorted(leaf_shapes(config, spec).items()):
        rng = np.random.default_rng([seed, *site.encode()])
        adapter[site] = {name: leaves[name].start(rng, shape) for name, shape in shapes.items()}
        if start is None:
            continue
        if pairs is None:
            raise ValueError(f"init '{spec.init}' starts from the base, whose directions are not given")
        adapter[site] |= {name: np.array(pairs[site][name], np.float32) for name in start.given}
        adapter[site] |= {name: np.zeros_like(adapter[site][name]) for name in start.zero}
    return adapter


def rate_of(spec: AdapterSpec, name: str) -> float:
    """The multiple of the learning rate that a leaf learns with; 0 where it is not trained."""
    method, start = METHODS[spec.method], BEGINNINGS.get(spec.init)
    still = {spec.frozen, "none" if start is None else start.frozen}
    return method.rates.get(name, 1.0) if name in method.leaves and name not in still else 0.0


def uneven(specs: Iterable[AdapterSpec]) -> tuple[str, ...]:
    """The leaves of a bank of such adapters, by name, where not all of them are learned with the same rate by all."""
    specs = list(specs)
    names = sorted({"a", "b"}.union(*(METHODS[spec.method].leaves for spec in specs)))
    if set(names) & set(GAINED):
        names = sorted({*names, "gains"})
    return tuple(names) if any(rate_of(spec, name) != 1 for spec in specs for name in names) else ()
