"""Multi-head latent attention (DeepSeek-V2, section 2.1), absorbed: queries go to the latent space, keys stay there.

The cache holds one key a token, the normed latent beside the rotated part that all heads share; its value is the
latent. A head's score is (q_nope W_UK) . latent + q_rope . k_rope, its output (sum of p latent) W_UV: the same numbers
as with keys and values of every head, which are never made, in training either.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.lora_matmul.api import expand, shrink
from kernels.paged_attention.api import attend
from kernels.paged_attention.xla import Latent
from kernels.rows import Rows
from pefx.batch import KVPool, TokenBatch
from pefx.collectives import enter, leave
from pefx.config import ModelConfig
from pefx.layers.key_index import KeyIndex, choose_keys
from pefx.layers.linear import Adapters, linear
from pefx.layers.memory import Steering
from pefx.layers.norm import rms_norm
from pefx.layers.parameter import ones, weight
from pefx.layers.rope import rotate, softmax_scale

# Of the norms of latents, whatever the config says of the others: so the published models compute them.
NORM_EPSILON = 1e-6
# A product with a matrix `[in, out]` gives a row the same bits at this many rows and at more.
ROWS = 64


class LatentAttention(nnx.Module):
    """Weights of `layers` layers, stacked; projections are `[out, in]`. Latents are not divided over heads."""

    def __init__(self, config: ModelConfig, layers: int, rngs: nnx.Rngs):
        c, d, rank = config, config.hidden, config.kv_rank
        queries, out = c.heads * (c.nope_head_size + c.rope_head_size), c.heads * c.value_head_size

        def matrix(rows: int, columns: int, row_axis: str, column_axis: str) -> nnx.Param[jax.Array]:
            axes = ("layers", row_axis, column_axis)
            return weight(rngs, (layers, rows, columns), axes, columns**-0.5, c.precision)

        self.q_proj = None if c.query_rank else matrix(queries, d, "heads", "embed")
        self.q_a_proj = matrix(c.query_rank, d, "latent", "embed") if c.query_rank else None
        self.q_a_norm = ones((layers, c.query_rank), ("layers", "latent"), c.precision) if c.query_rank else None
        self.q_b_proj = matrix(queries, c.query_rank, "heads", "latent") if c.query_rank else None
        self.kv_a_proj = matrix(rank + c.rope_head_size, d, "latent", "embed")
        self.kv_a_norm = ones((layers, rank), ("layers", "latent"), c.precision)
        self.kv_b_proj = matrix(c.heads * (c.nope_head_size + c.value_head_size), rank, "heads", "latent")
        self.index = KeyIndex(c, layers, rngs) if c.index_keys else None
        self.o_proj = weight(
            rngs, (layers, d, out), ("layers", "embed", "heads"), (2 * c.layers * out) ** -0.5, c.precision
        )


def mla(
    x: Float[Array, "T D"],
    weights: LatentAttention,
    config: ModelConfig,
    adapters: Adapters,
    rows: Rows | None,
    batch: TokenBatch,
    cache: tuple[KVPool, jax.Array, tuple[jax.Array, jax.Array]],
    steering: Steering | None = None,
) -> tuple[Float[Array, "T D"], KVPool]:
    """One layer, as `pefx.layers.attention.attention`. Output in x's dtype."""
    pool, layer, (cosine, sine) = cache
    rank, nope = config.kv_rank, config.nope_head_size

    def project(name: str, x: Float[Array, "T D"]) -> Float[Array, "T F"]:
        return linear(x, getattr(weights, name)[...], adapters.get(name), rows)

    def turned(x: Float[Array, "T H K"]) -> Float[Array, "T H K"]:
        return rotate(x, cosine, sine, config.rotary_neighbours)

    at, index = batch.layout(), pool.index
    if weights.q_a_norm is None:
        q = project("q_proj", enter(x))
    else:
        query_latent = rms_norm(project("q_a_proj", x), weights.q_a_norm[...], NORM_EPSILON)
        q = project("q_b_proj", enter(query_latent))
        if weights.index is not None:
            chosen, index = choose_keys((x, query_latent), weights.index, config, batch, cache)
            at = at._replace(chosen=chosen)
    q = q if steering is None else steering.query(q)
    q = q.reshape(x.shape[0], -1, nope + config.rope_head_size)
    kv = project("kv_a_proj", x)[:, None]
    latent = rms_norm(kv[..., :rank], weights.kv_a_norm[...], NORM_EPSILON)
    gap = pool.keys.shape[-1] - rank - config.rope_head_size
    key = enter(jnp.pad(jnp.concatenate([latent, turned(kv[..., rank:])], axis=-1), ((0, 0), (0, 0), (0, gap))))
    heads = _Heads.of(weights.kv_b_proj[...], config, adapters.get("kv_b_proj"), rows)
    query = jnp.concatenate([heads.to_latent(q[..., :nope]), turned(q[..., nope:])], axis=-1)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, gap)))
    how = Latent(rank, softmax_scale(config))
    o, keys, _ = attend(query, key, None, pool.keys, None, layer, at, how)
    y = leave(project("o_proj", heads.from_latent(o).reshape(x.shape[0], -1)))
    return y if steering is None else steering.output(y), replace(pool, keys=keys, index=index)


class _Heads(NamedTuple):
    """`kv_b_proj` by head, `[H, nope + value, rank]`, with the adapters of a mixed batch; `nope` rows make keys."""

    matrices: Array
    nope: int
    factors: Factors | None
    rows: Rows | None

    @classmethod
    def of(cls, matrix: Array, config: ModelConfig, factors: Factors | None, rows: Rows | None) -> "_Heads":
        by_head = matrix.reshape(-1, config.nope_head_size + config.value_head_size, matrix.shape[-1])
        return cls(by_head, config.nope_head_size, factors, rows)

    def to_latent(self, q: Float[Array, "T H n"]) -> Float[Array, "T H c"]:
        """Each head's query against latents: `q W_UK`, and `s (q B) A` of the row's own adapter."""
        short = max(0, ROWS - q.shape[0])
        padded = jnp.pad(q, ((0, short), (0, 0), (0, 0)))
        y = _per_head(padded, self.matrices[:, : self.nope], 1)[: q.shape[0]].astype(q.dtype)
        if self.factors is None or self.rows is None:
            return y
        by_slot, by_head, b = self._adapters(self.factors, self.rows)
        z = shrink(_laid_out(q, self.rows), b._replace(a=b.b[..., : self.nope], b=None), by_head)
        out = self.factors._replace(a=None, b=self.factors.a)
        return _gathered(expand(_laid_out(y, self.rows), z, out, by_slot), self.rows, q.shape[1])

    def from_latent(self, o: Float[Array, "T H c"]) -> Float[Array, "T H v"]:
        """Each head's output from its sum of latents: `o W_UV`, and `s (o A) B` of the row's own adapter."""
        y = _per_head(o, self.matrices[:, self.nope :], 2).astype(o.dtype)
        if self.factors is None or self.rows is None:
            return y
        by_slot, by_head, b = self._adapters(self.factors, self.rows)
        z = shrink(_laid_out(o, self.rows), self.factors._replace(b=None), by_slot)
        out = b._replace(b=b.b[..., self.nope :])
        return _gathered(expand(_laid_out(y, self.rows), z, out, by_head), self.rows, o.shape[1])

    def _adapters(self, factors: Factors, rows: Rows) -> tuple[Rows, Rows, Factors]:
        """Rows of all heads owned by slots, and by heads of slots (`slot * H + head`); the factor b of those."""
        heads = self.matrices.shape[0]
        slot = jnp.repeat(rows.owner, heads)
        head = jnp.tile(jnp.arange(heads, dtype=jnp.int32), rows.owner.shape[0])
        singles = rows.singles * heads
        by_slot = Rows(slot, singles, rows.tile)
        by_head = Rows(jnp.where(slot < 0, -1, slot * heads + head), singles, rows.tile)
        count = factors.scales.shape[0]
        b = jax.lax.dynamic_slice_in_dim(factors.b, factors.offset, count)
        b = b.reshape(*b.shape[:2], heads, -1).transpose(0, 2, 1, 3).reshape(count * heads, b.shape[1], -1)
        scales = jnp.repeat(factors.scales, heads)
        return by_slot, by_head, Factors(None, b, scales, jnp.zeros((), jnp.int32))


def _per_head(x: Float[Array, "T H n"], matrices: Array, contracted: int) -> Float[Array, "T H m"]:
    """Each head's rows times its matrix, over that dimension of it; float32. Rows on the left keep their bits."""
    dimensions = (((2,), (contracted,)), ((0,), (0,)))
    y = jax.lax.dot_general(x.transpose(1, 0, 2), matrices, dimensions, preferred_element_type=jnp.float32)
    return y.transpose(1, 0, 2)


def _laid_out(x: Float[Array, "T H K"], rows: Rows) -> Float[Array, "TH K"]:
    """Rows of all heads: those of a single row follow each other, a tile becomes a tile of each head."""
    heads, size = x.shape[1:]
    tiles = x[rows.singles :].reshape(rows.tiles, rows.tile, heads, size).transpose(0, 2, 1, 3)
    return jnp.concatenate([x[: rows.singles].reshape(-1, size), tiles.reshape(-1, size)])


def _gathered(x: Float[Array, "TH K"], rows: Rows, heads: int) -> Float[Array, "T H K"]:
    """`[T, H, K]` again."""
    singles, size = rows.singles * heads, x.shape[-1]
    tiles = x[singles:].reshape(rows.tiles, heads, rows.tile, size).transpose(0, 2, 1, 3)
    return jnp.concatenate([x[:singles].reshape(-1, heads, size), tiles.reshape(-1, heads, size)])
