"""Mixture of experts: a router, tokens grouped by (expert, slot), experts with adapters, copies summed in order."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from kernels.expert_lora.api import expert_lora, tile_sizes
from kernels.expert_lora.block_sizes import WINDOW
from kernels.expert_mlp.api import expert_mlp
from kernels.expert_mlp.xla import Matrices, Sites
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.lora_matmul.api import expand, shrink
from kernels.rows import Rows
from kernels.tiles import tile_map
from kernels.windows import windows
from pefx.collectives import enter, group_slots, leave, size
from pefx.config import ModelConfig
from pefx.layers.exchange import bring, exchange, send
from pefx.layers.linear import Adapters, dot
from pefx.layers.parameter import weight, zeros
from pefx.layers.quantised import Quantised
from pefx.mesh import EXPERT

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
SCORES = {"softmax": lambda logits: softmax(logits), "sigmoid": jax.nn.sigmoid}


class Router(nnx.Module):
    """Routers of `layers` layers, stacked, `[E, D]`; `bias [E]` is float32 whatever the base's precision."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        shape = (layers, config.experts, config.hidden)
        # Every shard scores all experts.
        self.weight = weight(rngs, shape, ("layers", "scores", "embed"), config.hidden**-0.5, config.precision)
        self.bias = zeros(shape[:2], ("layers", "scores"), "float32") if config.router_bias else None


class Experts(nnx.Module):
    """Experts of `layers` layers, stacked; `[in, out]`, the form that tiles of at most 32 rows read in place."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        c, d, f = config, config.hidden, config.expert_hidden
        wide, back = ("layers", "experts", "embed", "mlp"), ("layers", "experts", "mlp", "embed")
        self.gate_proj = weight(rngs, (layers, c.experts, d, f), wide, d**-0.5, c.precision)
        self.up_proj = weight(rngs, (layers, c.experts, d, f), wide, d**-0.5, c.precision)
        self.down_proj = weight(rngs, (layers, c.experts, f, d), back, (2 * c.layers * f) ** -0.5, c.precision)


class Routing(NamedTuple):
    """`ids [T, k]` chosen experts in top-k order, `gates [T, k]` float32 weights, `scores [T, E]` float32, 1 in all."""

    ids: Int32[Array, "T k"]
    gates: Float[Array, "T k"]
    scores: Float[Array, "T E"]


def quotient(x: Float[Array, "T E"], total: Float[Array, "T 1"]) -> Float[Array, "T E"]:
    """`x / total`, as a product with a reciprocal that XLA does not look into.

    It would make a division by one number a row a product, or leave it, as it sees fit in each program: in a step for a
    mesh other than in one for a single device, and in gradients other than in values.
    """
    return x * jax.lax.optimization_barrier(jax.lax.integer_pow(total, -1))


def softmax(x: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Over the experts of each token."""
    above = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))
    return quotient(above, jnp.sum(above, axis=-1, keepdims=True))


def route(x: Float[Array, "T D"], weights: Router, config: ModelConfig, replay: Int32[Array, "T k"]) -> Routing:
    """Top-k routing; of equal experts, the first. A `replay` id >= 0 is taken as recorded, its gate live; -1: live."""
    scores = SCORES[config.router_scores](dot(x, weights.weight[...]))
    wanted = jax.lax.stop_gradient(scores)
    if weights.bias is not None:
        wanted = wanted + jax.lax.stop_gradient(weights.bias[...])[None]
    if config.groups_per_token < config.expert_groups:
        wanted = _best_groups(wanted, config.expert_groups, config.groups_per_token)
    live = jax.lax.top_k(wanted, config.experts_per_token)[1].astype(jnp.int32)
    ids = jnp.where(replay >= 0, replay, live)
    gates = jnp.take_along_axis(scores, ids, axis=-1)
    if config.normalize_gates:
        # Sigmoids can all be as good as zero. A softmax's best are not: they keep their bits.
        gates = quotient(gates, jnp.sum(gates, axis=-1, keepdims=True) + 1e-20)
    if config.gate_scale != 1:
        gates = gates * config.gate_scale
    if config.router_scores == "sigmoid":
        scores = quotient(scores, jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    return Routing(ids, gates.astype(x.dtype).astype(jnp.float32), scores)


def _best_groups(wanted: Float[Array, "T E"], groups: int, kept: int) -> Float[Array, "T E"]:
    """Minus infinity for all but the `kept` groups with the largest sums of two (DeepSeek-V3, section 2.1.2)."""
    grouped = wanted.reshape(wanted.shape[0], groups, -1)
    best = jax.lax.top_k(grouped, 2)[0]
    chosen = jax.lax.top_k(best[..., 0] + best[..., 1], kept)[1]
    mask = (chosen[:, :, None] == jnp.arange(groups, dtype=chosen.dtype)[None, None]).any(axis=1)
    return jnp.where(mask[..., None], grouped, -jnp.inf).reshape(wanted.shape)


class Region(NamedTuple):
    """Rows of a step that go through the experts together: single rows, or tiles.

    `place` says which rows they are; `rows` are owned by slots. `index` numbers the adapter of each row of the group,
    the shards of an expert axis, among those present (0: the bare base), whose slots among the group's are `slots`.
    """

    place: slice
    rows: Rows
    index: Int32[Array, "T2"]
    slots: Int32[Array, "n"]


def regions(rows: Rows, bank_slots: int) -> list[Region]:
    """The regions of a step whose rows are owned by a shard's slots of a bank; made once for all layers."""
    found = []
    for place, groups, rows_each in rows.parts():
        owner = rows.owner[groups]
        if bank_slots == 0:
            owner = jnp.full_like(owner, -1)
        everyone, all_slots = group_slots(owner, bank_slots), bank_slots * size(EXPERT)
        most = min(everyone.shape[0], all_slots)
        # Numbered among those present, so that grouping does not grow with the bank. -1 comes first.
        slots = jnp.unique(jnp.append(everyone, -1), size=most + 1, fill_value=all_slots).astype(jnp.int32)
        index = jnp.searchsorted(slots, everyone).astype(jnp.int32)
        own = Rows(owner, owner.shape[0] if rows_each == 1 else 0, rows.tile)
        found.append(Region(place, own, jnp.repeat(index, rows_each), slots))
    return found


def moe(
    x: Float[Array, "T D"],
    experts: Experts,
    layer: Int32[Array, ""],
    routing: Routing,
    adapters: tuple[Adapters, Adapters],
    places: tuple[Int32[Array, "T"], list[Region]],
) -> Float[Array, "T D"]:
    """The layer's routed experts, `layer` counted among the stacked ones. Output in x's dtype.

    `adapters` are factors of one expert each, and those that a layer's experts share; `places` are positions (-1:
    padding, which goes nowhere) and regions.
    """
    positions, found = places
    ids = jnp.where((positions >= 0)[:, None], routing.ids, -1)
    x, gates = enter(x), enter(routing.gates)
    sites = tuple({name.removeprefix("experts."): f for name, f in part.items()} for part in adapters)
    return leave(
        jnp.concatenate([_region(x[r.place], experts, layer, sites, (ids[r.place], gates[r.place], r)) for r in found])
    )


def _region(x, experts: Experts, layer, sites: tuple[dict[str, Factors], ...], where) -> Float[Array, "T D"]:
    """One region's rows through the experts. Factors that a layer's experts share meet each row once, outside them."""
    ids, gates, region = where
    inside, shared = sites
    shrunk = {name: shrink(x, f, region.rows) for name, f in shared.items() if f.a is not None}
    projections = [(_folded(experts, name, layer)[0], inside.get(name)) for name in PROJECTIONS]
    sizes = tile_sizes(x, projections, bool(region.rows.singles))
    run = _windowed if sizes is None else partial(_tiled, sizes)
    y, z = run(x, shrunk, experts, layer, inside, (ids, gates, region))
    y = y.astype(x.dtype)
    if z is None:
        return y
    return expand(y, z.astype(x.dtype), shared["down_proj"], region.rows)


def _folded(experts: Experts, name: str, layer: Int32[Array, ""]) -> tuple[Array, Int32[Array, ""]]:
    """A projection's matrices of all layers in one row, and where this layer's begin; of 8-bit ones this layer's."""
    held = getattr(experts, name)
    if isinstance(held, Quantised):
        return held.layer(layer), jnp.zeros_like(layer)
    stacked = held[...]
    return stacked.reshape(-1, *stacked.shape[2:]), layer * stacked.shape[1]


def _tiled(sizes: tuple[int, int], x, shrunk, experts: Experts, layer, site: dict[str, Factors], where):
    """Rows in tiles of one expert: on a TPU all; else the bare base, and decodes, which hardly share an adapter."""
    ids, gates, region = where
    copies, count = ids.shape[1], experts.gate_proj.shape[1]
    tile, subtile = sizes
    to = exchange(ids, count)
    own = to.experts.reshape(-1)
    if site:
        adapter = jnp.repeat(region.index, copies)
        subgroups = region.slots.shape[0]
        tiles = tile_map(own, adapter, groups=count, subgroups=subgroups, tile=tile, subtile=subtile)
        tiles = replace(tiles, subgroup=jnp.where(tiles.subgroup < 0, 0, region.slots[tiles.subgroup] + 1))
    else:
        tiles = tile_map(own, groups=count, tile=tile)
    sent = {name: send(z, tiles, to, copies) for name, z in shrunk.items()}

    def project(rows, name: str):
        matrices, offset = _folded(experts, name, layer)
        if name not in site:
            return grouped_matmul(rows, matrices, tiles, offset), None
        return expert_lora(rows, sent.get(name), matrices, site[name], tiles, offset)

    rows = send(x, tiles, to, copies)
    (gate, _), (up, _) = project(rows, "gate_proj"), project(rows, "up_proj")
    y, z = project(jax.nn.silu(gate) * up, "down_proj")
    return bring(y, gates, tiles, to), None if z is None else bring(z, gates, tiles, to)


def _windowed(x, shrunk, experts: Experts, layer, site: dict[str, Factors], where):
    """Runs of rows with one adapter: prompts and training."""
    ids, gates, region = where
    copies, count = ids.shape[1], experts.gate_proj.shape[1]
    adapter = jnp.repeat(region.index, copies)
    to = exchange(ids, count)
    own = windows(to.experts.reshape(-1), adapter, groups=count, subgroups=region.slots.shape[0], size=WINDOW)
    own = replace(own, pairs=own.pairs._replace(subgroup=region.slots[own.pairs.subgroup] + 1))
    sent = Sites(*(send(shrunk[name], own, to, copies) if name in shrunk else None for name in PROJECTIONS))
    (gate, offset), (up, _), (down, _) = (_folded(experts, name, layer) for name in PROJECTIONS)
    stacked = Matrices(gate, up, down, offset)
    y, z = expert_mlp(send(x, own, to, copies), sent, stacked, Sites(*map(site.get, PROJECTIONS)), own)
    return bring(y, gates, own, to), None if z is None else bring(z, gates, own, to)
