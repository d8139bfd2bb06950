"""Mixture of experts: a router, tokens grouped by (expert, slot), experts with adapters, copies summed in order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from kernels.expert_lora.api import expert_lora
from kernels.grouped_matmul.api import grouped_matmul
from kernels.tiles import TileMap, combine, dispatch, tile_map
from pefx.config import ModelConfig
from pefx.layers.linear import Adapters, dot
from pefx.layers.parameter import weight


class Router(nnx.Module):
    """Routers of `layers` layers, stacked, `[E, D]`."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        shape = (layers, config.experts, config.hidden)
        self.weight = weight(rngs, shape, ("layers", "experts", "embed"), config.hidden**-0.5, config.precision)


class Experts(nnx.Module):
    """Experts of `layers` layers, stacked; `[in, out]`, the form that tiles of at most 32 rows read in place."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        c, d, f = config, config.hidden, config.expert_hidden
        wide, back = ("layers", "experts", "embed", "mlp"), ("layers", "experts", "mlp", "embed")
        self.gate_proj = weight(rngs, (layers, c.experts, d, f), wide, d**-0.5, c.precision)
        self.up_proj = weight(rngs, (layers, c.experts, d, f), wide, d**-0.5, c.precision)
        self.down_proj = weight(rngs, (layers, c.experts, f, d), back, (2 * c.layers * f) ** -0.5, c.precision)


class Routing(NamedTuple):
    """`ids [T, k]` chosen experts in top-k order, `gates [T, k]` float32 weights, `scores [T, E]` float32."""

    ids: Int32[Array, "T k"]
    gates: Float[Array, "T k"]
    scores: Float[Array, "T E"]


def route(x: Float[Array, "T D"], weights: Router, config: ModelConfig, replay: Int32[Array, "T k"]) -> Routing:
    """Top-k softmax routing. A `replay` id >= 0 is taken as recorded, its gate live; -1 routes live."""
    logits = dot(x, weights.weight[...])
    scores = jax.nn.softmax(logits, axis=-1)
    live = jax.lax.top_k(jax.lax.stop_gradient(scores), config.experts_per_token)[1].astype(jnp.int32)
    ids = jnp.where(replay >= 0, replay, live)
    gates = jnp.take_along_axis(scores, ids, axis=-1)
    if config.normalize_gates:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    return Routing(ids, gates.astype(x.dtype).astype(jnp.float32), scores)


def group_by_expert(
    ids: Int32[Array, "T k"], positions: Int32[Array, "T"], slots: Int32[Array, "T"], sizes: tuple[int, int, int, int]
) -> TileMap:
    """Tiles of one expert, subtiles of one (expert, slot); padding tokens go nowhere.

    `sizes` are experts, bank slots, rows of a tile and rows of a subtile.
    """
    experts, bank_slots, tile, subtile = sizes
    copies = ids.shape[1]
    expert = jnp.where((positions >= 0)[:, None], ids, -1).reshape(-1)
    if bank_slots == 0:
        return tile_map(expert, groups=experts, tile=tile)
    slot = jnp.repeat(slots + 1, copies)
    return tile_map(expert, slot, groups=experts, subgroups=bank_slots + 1, tile=tile, subtile=subtile)


def moe(
    x: Float[Array, "T D"],
    experts: Experts,
    layer: Int32[Array, ""],
    routing: Routing,
    adapters: Adapters,
    tiles: TileMap,
) -> Float[Array, "T D"]:
    """The layer's routed experts, `layer` counted among the stacked ones. Float32 output."""
    copies = routing.ids.shape[1]

    def project(rows, name: str):
        stacked = getattr(experts, name)[...]
        folded = stacked.reshape(-1, *stacked.shape[2:])
        offset, factors = layer * stacked.shape[1], adapters.get("experts." + name)
        if factors is None:
            return grouped_matmul(rows, folded, tiles, offset)
        return expert_lora(rows, folded, factors, tiles, offset)

    rows = dispatch(x, tiles, copies)
    hidden = jax.nn.silu(project(rows, "gate_proj")) * project(rows, "up_proj")
    return combine(project(hidden, "down_proj"), routing.gates, tiles)
