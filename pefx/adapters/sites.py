"""Where adapters attach: one table of site names, written once for training, serving, storage and exchange."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from pefx.config import AdapterSpec, ModelConfig


@dataclass(frozen=True)
class Site:
    """`kind` says which layers have it (attention, memory: all; dense; experts, shared_experts: the others; unembed:
    one).

    `reads` and `writes` name widths. `shared` is the factor that the experts of a layer share in the `shared_hidden`
    form: the one on the hidden side. A site with a width of 0 is not there: heads have keys, or latent ones.
    """

    kind: str
    reads: str
    writes: str
    shared: str | None = None


SITES: dict[str, Site] = {
    "q_proj": Site("attention", "hidden", "plain_queries"),
    "k_proj": Site("attention", "hidden", "keys"),
    "v_proj": Site("attention", "hidden", "keys"),
    "q_a_proj": Site("attention", "hidden", "query_latent"),
    "q_b_proj": Site("attention", "query_latent", "queries"),
    "kv_a_proj": Site("attention", "hidden", "latent_key"),
    "kv_b_proj": Site("attention", "latent", "keys_and_values"),
    "o_proj": Site("attention", "heads", "hidden"),
    "gate_proj": Site("dense", "hidden", "dense_hidden"),
    "up_proj": Site("dense", "hidden", "dense_hidden"),
    "down_proj": Site("dense", "dense_hidden", "hidden"),
    "experts.gate_proj": Site("experts", "hidden", "expert_hidden", shared="a"),
    "experts.up_proj": Site("experts", "hidden", "expert_hidden", shared="a"),
    "experts.down_proj": Site("experts", "expert_hidden", "hidden", shared="b"),
    "shared_experts.gate_proj": Site("shared_experts", "hidden", "shared_hidden"),
    "shared_experts.up_proj": Site("shared_experts", "hidden", "shared_hidden"),
    "shared_experts.down_proj": Site("shared_experts", "shared_hidden", "hidden"),
    "unembed": Site("unembed", "hidden", "vocabulary"),
    "memory": Site("memory", "hidden", "all_queries"),
}

MATRICES = tuple(name for name, site in SITES.items() if site.kind != "memory")  # sites where a matrix is adapted


def layer_count(config: ModelConfig, kind: str) -> int:
    """Layers of the base that have sites of this kind."""
    dense = sum(layer < config.layers for layer in config.dense_layers)
    sparse = config.layers - dense
    return {
        "attention": config.layers,
        "dense": dense,
        "experts": sparse,
        "shared_experts": sparse if config.shared_experts else 0,
        "unembed": 1,
        "memory": config.layers,
    }[kind]


def layers_with(config: ModelConfig, name: str) -> list[int]:
    """Layers of the base (0-based) that have a site, in the order of an adapter's; `[0]` for the unembedding."""
    kind = SITES[name].kind
    if kind == "unembed":
        return [0]
    if not has_site(config, name):
        return []
    if kind in ("attention", "memory"):
        return list(range(config.layers))
    return [layer for layer in range(config.layers) if (layer in config.dense_layers) == (kind == "dense")]


def width(config: ModelConfig, name: str) -> int:
    """Size of a named width; 0 where the base has none."""
    return {
        **(_latent_widths(config) if config.kv_rank else _head_widths(config)),
        "hidden": config.hidden,
        "dense_hidden": config.dense_hidden,
        "expert_hidden": config.expert_hidden,
        "shared_hidden": config.shared_experts * config.expert_hidden,
        "vocabulary": config.vocab_size,
    }[name]


def _head_widths(config: ModelConfig) -> dict[str, int]:
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    absent = dict.fromkeys(("query_latent", "queries", "latent", "latent_key", "keys_and_values"), 0)
    return {"plain_queries": queries, "all_queries": queries, "keys": keys, "heads": queries, **absent}


def _latent_widths(config: ModelConfig) -> dict[str, int]:
    queries = config.heads * (config.nope_head_size + config.rope_head_size)
    return {
        "plain_queries": 0 if config.query_rank else queries,
        "keys": 0,
        "query_latent": config.query_rank,
        "queries": queries,
        "all_queries": queries,
        "latent": config.kv_rank,
        "latent_key": config.kv_rank + config.rope_head_size,
        "keys_and_values": config.heads * (config.nope_head_size + config.value_head_size),
        "heads": config.heads * config.value_head_size,
    }


# Where in a segment of the base the parameters of a kind of site are.
_PLACES = {"attention": "block.attention.", "dense": "block.feed.", "experts": "", "shared_experts": "block."}


def parameter(name: str) -> str | None:
    """The parameter of a segment that a site adapts, as the tables of families name it; None for the unembedding."""
    kind = SITES[name].kind
    return None if kind == "unembed" else _PLACES[kind] + name


def has_site(config: ModelConfig, name: str) -> bool:
    """Whether the base has layers with this site."""
    site = SITES[name]
    return min(layer_count(config, site.kind), width(config, site.reads), width(config, site.writes)) > 0


def home(targets: Iterable[str], there: Container[str]) -> str | None:
    """Of these targets the site that holds what all of them share, among those that are `there`: the first whose
    factors are of whole layers, which lie with the slots. None where there is none.
    """
    wanted = [site for site in SITES if site in set(targets) and site in there]
    return next((site for site in wanted if SITES[site].kind != "experts"), None)


def has_bias(config: ModelConfig, name: str) -> bool:
    """Whether the projection adds a bias to its product."""
    return config.attention_bias and name in ("q_proj", "k_proj", "v_proj")


# Widths that the mesh may divide, by logical axis. Latents are whole everywhere.
DIVIDED = {
    "plain_queries": "heads",
    "queries": "heads",
    "all_queries": "heads",
    "keys_and_values": "heads",
    "heads": "heads",
    "keys": "kv_heads",
    "dense_hidden": "mlp",
    "expert_hidden": "mlp",
    "shared_hidden": "mlp",
    "vocabulary": "vocab",
}


# Leaves as wide as what a site reads, or writes.
SIDES = {
    **dict.fromkeys(("a", "a0"), "reads"),
    **dict.fromkeys(("b", "b0", "gains", "magnitude", "by_output", "steer_query"), "writes"),
}


def width_axis(site: str, leaf: str) -> str | None:
    """The logical axis of a leaf's columns, None where they are never divided."""
    return DIVIDED.get(getattr(SITES[site], SIDES[leaf])) if leaf in SIDES else None


def is_partial(site: str, factor: str) -> bool:
    """Whether this factor is whole on the shards of a divided width, each of which has a part of its gradient."""
    other = "a" if SIDES.get(factor) == "writes" else "b"
    return factor in SIDES and width_axis(site, factor) is None and width_axis(site, other) is not None


def has_experts(site: str, factor: str, spec: AdapterSpec) -> bool:
    """Whether this factor has an expert axis; in `shared_hidden` the hidden-side factor has none."""
    place = SITES[site]
    return place.kind == "experts" and not (spec.expert_form == "shared_hidden" and place.shared == factor)
