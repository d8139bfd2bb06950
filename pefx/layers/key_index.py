"""The index of sparse attention (DeepSeek-V3.2, section 2.1; GLM-5): small keys by which keys are chosen."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from kernels.key_choice.api import choose
from pefx.batch import KVPool, TokenBatch
from pefx.config import ModelConfig
from pefx.layers.linear import dot
from pefx.layers.parameter import ones, weight, zeros
from pefx.layers.rope import rotate

NORM_EPSILON = 1e-6  # whatever the config says of the other norms: so the published models compute it


class KeyIndex(nnx.Module):
    """Weights of `layers` layers, stacked; projections are `[out, in]`. Heads of the index are not divided."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        c, d, size = config, config.hidden, config.index_head_size

        def matrix(rows: int, columns: int, axis: str) -> nnx.Param[jax.Array]:
            return weight(rngs, (layers, rows, columns), ("layers", "index", axis), columns**-0.5, c.precision)

        self.q_proj = matrix(c.index_heads * size, c.query_rank, "latent")
        self.k_proj = matrix(size, d, "embed")
        self.k_norm = ones((layers, size), ("layers", "index"), c.precision)
        self.k_norm_bias = zeros((layers, size), ("layers", "index"), c.precision)
        self.weights_proj = matrix(c.index_heads, d, "embed")


def choose_keys(
    x: tuple[Float[Array, "T D"], Float[Array, "T r"]],
    weights: KeyIndex,
    config: ModelConfig,
    batch: TokenBatch,
    cache: tuple[KVPool, jax.Array, tuple[jax.Array, jax.Array]],
) -> tuple[Bool[Array, "T C"], Array]:
    """The positions that each token attends to, and the pool's index keys with this step's.

    `x` are hidden states and the latents of queries; `cache` is as in `mla`.
    """
    (hidden, latent), (pool, layer, (cosine, sine)) = jax.lax.stop_gradient(x), cache
    if pool.index is None:
        raise ValueError("the pool holds no index keys: it was made for another config")
    tokens, heads, size = hidden.shape[0], config.index_heads, config.index_head_size
    q = dot(latent, weights.q_proj[...]).astype(hidden.dtype).reshape(tokens, heads, size)
    k = _norm(dot(hidden, weights.k_proj[...]), weights).astype(hidden.dtype)[:, None]
    q, k = (rotate(y, cosine, sine, config.rotary_neighbours) for y in (q, k))
    of_heads = dot(hidden, weights.weights_proj[...]) * (heads * size) ** -0.5
    return choose(q, of_heads, k, pool.index, layer, batch.layout(), config.index_keys)


def _norm(x: Float[Array, "T K"], weights: KeyIndex) -> Float[Array, "T K"]:
    """Layer norm (Ba et al. 2016), float32."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
    return x * weights.k_norm[...].astype(jnp.float32)[None] + weights.k_norm_bias[...].astype(jnp.float32)[None]
