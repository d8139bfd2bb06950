"""Causal attention over paged keys and values: prefill, decode and training are one operation."""

from functools import partial
from typing import cast

import jax
from jaxtyping import Array, Float, Int32

from kernels.paged_attention import xla
from kernels.paged_attention.xla import Layout

MAX_ROWS = 128  # products over one block of keys: from 2 to this many rows, each row gets the same bits


def query_tile(heads: int, kv_heads: int) -> int:
    """Tokens in a prefill or training tile: as many as keep the query heads of one key head within `MAX_ROWS`."""
    tile = 32
    while tile > 1 and tile * (heads // kv_heads) > MAX_ROWS:
        tile //= 2
    return tile


def attend(
    q: Float[Array, "T H K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T G K"],
    keys: Float[Array, "L P B G K"],
    values: Float[Array, "L P B G K"],
    layer: Int32[Array, ""],
    at: Layout,
) -> tuple[Float[Array, "T H K"], Float[Array, "L P B G K"], Float[Array, "L P B G K"]]:
    """Write this step's keys and values to their pages, then attend to every key at or before each query.

    Gradients reach q, k, v where every sequence lies whole in this batch, from a page boundary on; the pool is data.
    """
    pool = jax.lax.stop_gradient((keys, values))
    o, keys, values = cast(tuple, _attend(q, k, v, *pool, layer, at, keys.shape[2]))
    return o, jax.lax.stop_gradient(keys), jax.lax.stop_gradient(values)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(q, k, v, keys, values, layer, at, block):
    return _forward(q, k, v, keys, values, layer, at, block)[0]


def _forward(q, k, v, keys, values, layer, at, block):
    keys, values = xla.write(keys, k, layer, at), xla.write(values, v, layer, at)
    o, lse = xla.forward(q, keys, values, layer, at)
    return (o, keys, values), (q, k, v, o, lse, at)


def _backward(block, residuals, cotangents):
    q, k, v, o, lse, at = residuals
    return *xla.backward(q, k, v, o, lse, cotangents[0], at, block), None, None, None, None


_attend.defvjp(_forward, _backward)
