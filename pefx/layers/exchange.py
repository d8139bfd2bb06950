"""Rows travel to the experts they chose, and back. No row is dropped.

Between the shards of an expert axis every row is known to all; each takes those of its own experts. Copies come back to
their token one by one and are added there, in order, so that no bit depends on how many shards there are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.tiles import Placed, combine, dispatch, in_order, take_rows
from pefx.collectives import index, of_group, size
from pefx.mesh import EXPERT


def own_experts(ids: Int32[Array, "T k"], count: int) -> Int32[Array, "T2 k"]:
    """Chosen experts of the group's rows counted among this shard's `count`; -1 for those of others, and for none."""
    local = of_group(ids) - index(EXPERT) * count
    return jnp.where((local >= 0) & (local < count), local, -1) if size(EXPERT) > 1 else ids


def send(x: Float[Array, "T D"], placed: Placed, copies: int) -> Float[Array, "NB D"]:
    """Each token's row at the places of its copies: row `t * copies + j` of the map is copy j of token t."""
    return _send(x, placed, copies) if size(EXPERT) > 1 else dispatch(x, placed, copies)


def bring(buffer: Float[Array, "NB D"], gates: Float[Array, "T k"], placed: Placed) -> Float[Array, "T D"]:
    """Rows back at their tokens, the `k` copies weighted by float32 gates and added in order; float32."""
    return _bring(buffer, gates, placed) if size(EXPERT) > 1 else combine(buffer, gates, placed)


def _spread(x, placed, copies: int):
    """Rows `[T, D]` of every shard at the places of their copies here."""
    return take_rows(of_group(x), placed.source // copies)


def _collect(buffer, placed, copies: int):
    """Copies `[T, k, D]` of this shard's tokens, from wherever they are: all but one of the parts added are zero."""
    back = take_rows(buffer, placed.place)
    return jax.lax.psum_scatter(back, EXPERT, scatter_dimension=0, tiled=True).reshape(-1, copies, back.shape[1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _send(x, placed, copies: int):
    return _spread(x, placed, copies)


def _send_forward(x, placed, copies):
    return _send(x, placed, copies), placed


def _send_backward(copies, placed, cotangent):
    return in_order(_collect(cotangent, placed, copies).astype(jnp.float32)).astype(cotangent.dtype), None


_send.defvjp(_send_forward, _send_backward)


@jax.custom_vjp
def _bring(buffer, gates, placed):
    return _bring_forward(buffer, gates, placed)[0]


def _bring_forward(buffer, gates, placed):
    back = _collect(buffer, placed, gates.shape[1])
    return in_order(back.astype(jnp.float32) * gates[..., None]), (back, gates, placed)


def _bring_backward(residuals, cotangent):
    back, gates, placed = residuals
    gate = take_rows(of_group(gates).reshape(-1), placed.source)
    to_buffer = _spread(cotangent, placed, gates.shape[1]) * gate[:, None]
    to_gates = jnp.sum(back.astype(jnp.float32) * cotangent[:, None], axis=-1)
    return to_buffer.astype(back.dtype), to_gates, None


_bring.defvjp(_bring_forward, _bring_backward)
