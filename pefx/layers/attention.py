"""Grouped-query attention with query and key norms (Qwen3), over paged keys and values."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from kernels.paged_attention.api import attend
from kernels.rows import Rows
from pefx.batch import KVPool, TokenBatch
from pefx.collectives import enter, leave
from pefx.config import ModelConfig
from pefx.layers.linear import Adapters, linear
from pefx.layers.norm import rms_norm
from pefx.layers.parameter import ones, weight
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
        self.q_norm = ones((layers, c.head_size), ("layers", "head"), c.precision)
        self.k_norm = ones((layers, c.head_size), ("layers", "head"), c.precision)


def attention(
    x: Float[Array, "T D"],
    weights: Attention,
    config: ModelConfig,
    adapters: Adapters,
    rows: Rows | None,
    batch: TokenBatch,
    cache: tuple[KVPool, jax.Array, tuple[jax.Array, jax.Array]],
) -> tuple[Float[Array, "T D"], KVPool]:
    """One layer. `cache` is the pool, this layer's index in it, and the step's rotary angles. Output in x's dtype."""
    pool, layer, (cosine, sine) = cache
    x, tokens = enter(x), x.shape[0]

    def project(name: str):
        y = linear(x, getattr(weights, name)[...], adapters.get(name), rows)
        return y.reshape(tokens, -1, config.head_size)

    q = rms_norm(project("q_proj"), weights.q_norm[...], config.norm_epsilon)
    k = rms_norm(project("k_proj"), weights.k_norm[...], config.norm_epsilon)
    v = project("v_proj")
    q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    o, keys, values = attend(q, k, v, pool.keys, pool.values, layer, batch.layout())
    y = linear(o.reshape(tokens, -1), weights.o_proj[...], adapters.get("o_proj"), rows)
    return leave(y), KVPool(keys, values)
