"""Grouped-query attention, with query and key norms (Qwen3) and biases (GLM-4.5) where a base has them, paged."""

from dataclasses import replace

import jax
from flax import nnx
from jaxtyping import Array, Float

from kernels.paged_attention.api import attend
from kernels.rows import Rows
from pefx.batch import KVPool, TokenBatch
from pefx.collectives import enter, leave
from pefx.config import ModelConfig
from pefx.layers.linear import Adapters, linear
from pefx.layers.memory import Steering
from pefx.layers.norm import rms_norm
from pefx.layers.parameter import ones, weight, zeros
from pefx.layers.rope import rotate


class Attention(nnx.Module):
    """Weights of `layers` attention layers, stacked; projections are `[out, in]`."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        c, d = config, config.hidden
        q, kv = c.heads * c.head_size, c.kv_heads * c.head_size
        self.q_proj = weight(rngs, (layers, q, d), ("layers", "heads", "embed"), d**-0.5, c.precision)
        self.k_proj = weight(rngs, (layers, kv, d), ("layers", "kv_heads", "embed"), d**-0.5, c.precision)
        self.v_proj = weight(rngs, (layers, kv, d), ("layers", "kv_heads", "embed"), d**-0.5, c.precision)
        self.o_proj = weight(
            rngs, (layers, d, q), ("layers", "embed", "heads"), (2 * c.layers * q) ** -0.5, c.precision
        )
        norms, biases = c.query_key_norm, c.attention_bias
        self.q_norm = ones((layers, c.head_size), ("layers", "head"), c.precision) if norms else None
        self.k_norm = ones((layers, c.head_size), ("layers", "head"), c.precision) if norms else None
        self.q_bias = zeros((layers, q), ("layers", "heads"), c.precision) if biases else None
        self.k_bias = zeros((layers, kv), ("layers", "kv_heads"), c.precision) if biases else None
        self.v_bias = zeros((layers, kv), ("layers", "kv_heads"), c.precision) if biases else None


def attention(
    x: Float[Array, "T D"],
    weights: Attention,
    config: ModelConfig,
    adapters: Adapters,
    rows: Rows | None,
    batch: TokenBatch,
    cache: tuple[KVPool, jax.Array, tuple[jax.Array, jax.Array]],
    steering: Steering | None = None,
) -> tuple[Float[Array, "T D"], KVPool]:
    """One layer. `cache` is the pool, this layer's index in it, and the step's rotary angles; `steering` what the
    tokens read of their memories. Output in x's dtype.
    """
    pool, layer, (cosine, sine) = cache
    x, tokens = enter(x), x.shape[0]

    def project(name: str):
        bias = getattr(weights, f"{name}_bias")
        y = linear(
            x,
            getattr(weights, f"{name}_proj")[...],
            adapters.get(f"{name}_proj"),
            rows,
            None if bias is None else bias[...],
        )
        y = y if name != "q" or steering is None else steering.query(y)
        return y.reshape(tokens, -1, config.head_size)

    def turned(y, norm):
        y = y if norm is None else rms_norm(y, norm[...], config.norm_epsilon)
        return rotate(y, cosine, sine, config.rotary_neighbours)

    q, k, v = turned(project("q"), weights.q_norm), turned(project("k"), weights.k_norm), project("v")
    o, keys, values = attend(q, k, v, pool.keys, pool.values, layer, batch.layout())
    y = linear(o.reshape(tokens, -1), weights.o_proj[...], adapters.get("o_proj"), rows)
    y = leave(y)
    return y if steering is None else steering.output(y), replace(pool, keys=keys, values=values)
