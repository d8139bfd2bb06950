"""Rows travel to the experts they chose, and back. No row is dropped.

Every shard of an expert axis knows what all rows of its group chose. On TPUs each copy goes to its expert's shard alone
(`ragged_all_to_all`); elsewhere every row is brought to all, and parts that are zero but for one are added on the way
back. Copies are added at their own token, in order, so that no bit depends on how many shards there are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.implementation import on_tpu
from kernels.tiles import Placed, combine, dispatch, in_order, sums_before, take_rows
from pefx.collectives import index, of_group, size
from pefx.mesh import EXPERT


class Chunks(NamedTuple):
    """Who sends how many rows to whom, in the order of the shards: where chunks begin here and there, and how long."""

    begin: Int32[Array, "G"]
    length: Int32[Array, "G"]
    begin_there: Int32[Array, "G"]
    length_back: Int32[Array, "G"]


class Travel(NamedTuple):
    """How copies reach their experts' shards. Own copies `order [T k]` are sent one behind the other, by shard; copy j
    is the `sent_as[j]`-th of them. Received row r is the group's copy `copy [M]`, which stands at `received_as [M]`.
    """

    order: Int32[Array, "N"]
    sent_as: Int32[Array, "N"]
    copy: Int32[Array, "M"]
    received_as: Int32[Array, "M"]
    out: Chunks
    back: Chunks


class Exchange(NamedTuple):
    """A layer's routes: `experts [T2 k]` are those of the group's rows among this shard's, -1 for none of them."""

    experts: Int32[Array, "T2 k"]
    travel: Travel | None


def exchange(ids: Int32[Array, "T k"], count: int) -> Exchange:
    """From the experts that this shard's rows chose (-1: none), of which each shard has `count`."""
    if size(EXPERT) == 1:
        return Exchange(ids, None)
    everyone = of_group(ids)
    local = everyone - index(EXPERT) * count
    mine = jnp.where((everyone >= 0) & (local >= 0) & (local < count), local, -1)
    return Exchange(mine, _travel(ids, everyone, mine, count) if on_tpu() else None)


def _travel(ids, everyone, mine, count: int) -> Travel:
    shards, here = size(EXPERT), index(EXPERT)
    each = jnp.arange(shards, dtype=jnp.int32)
    to = jnp.where(everyone < 0, shards, everyone // count).reshape(shards, -1)
    counts = jnp.sum(to[:, :, None] == each[None, None], axis=1, dtype=jnp.int32)  # [from, to]
    own = jnp.where(ids < 0, shards, ids // count).reshape(-1)
    order = jnp.argsort(own, stable=True).astype(jnp.int32)
    sent_as = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=jnp.int32), unique_indices=True)
    is_mine = (mine >= 0).reshape(-1)
    rows = is_mine.shape[0]
    received_as = jnp.where(is_mine, jnp.cumsum(is_mine, dtype=jnp.int32) - 1, rows)
    copy = jnp.full(rows, rows, jnp.int32).at[received_as].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    # Where the chunk from one shard to another begins among all that the one sends, and all that the other receives.
    sends, receives = sums_before(counts), sums_before(counts.T).T
    out = Chunks(sends[here], counts[here], receives[here], counts[:, here])
    back = Chunks(receives[:, here], counts[:, here], sends[:, here], counts[here])
    return Travel(order, sent_as, copy, received_as, out, back)


def send(x: Float[Array, "T D"], placed: Placed, to: Exchange, copies: int) -> Float[Array, "NB D"]:
    """Each token's row at the places of its copies: row `t * copies + j` of the map is copy j of token t."""
    return _send(x, placed, to, copies) if size(EXPERT) > 1 else dispatch(x, placed, copies)


def bring(
    buffer: Float[Array, "NB D"], gates: Float[Array, "T k"], placed: Placed, to: Exchange
) -> Float[Array, "T D"]:
    """Rows back at their tokens, the `k` copies weighted by float32 gates and added in order; float32."""
    return _bring(buffer, gates, placed, to) if size(EXPERT) > 1 else combine(buffer, gates, placed)


def _spread(x, placed, to: Exchange, copies: int):
    """Rows `[T, D]` of every shard at the places of their copies here."""
    if to.travel is None:
        return take_rows(of_group(x), placed.source // copies)
    return _received(take_rows(x, to.travel.order // copies), placed, to.travel)


def _spread_weighted(x, gates, placed, to: Exchange, dtype):
    """`_spread` of rows times the gate of each copy, in float32, rounded once to `dtype`."""
    if to.travel is None:
        gate = take_rows(of_group(gates).reshape(-1), placed.source)
        return (_spread(x, placed, to, gates.shape[1]) * gate[:, None]).astype(dtype)
    order = to.travel.order
    rows = take_rows(x, order // gates.shape[1]) * gates.reshape(-1)[order][:, None]
    return _received(rows.astype(dtype), placed, to.travel)


def _received(rows, placed, travel: Travel):
    """Copies that are sent in order, at their places where they arrive."""
    room = travel.received_as.shape[0]
    return take_rows(_ragged(rows, room, travel.out), jnp.append(travel.received_as, room)[placed.source])


def _collect(buffer, placed, to: Exchange, copies: int):
    """Copies `[T, k, D]` of this shard's tokens, from wherever they are."""
    if to.travel is None:  # all but one of the parts added are zero
        found = jax.lax.psum_scatter(take_rows(buffer, placed.place), EXPERT, scatter_dimension=0, tiled=True)
    else:
        travel = to.travel
        place = jnp.append(placed.place, buffer.shape[0])[travel.copy]
        returned = _ragged(take_rows(buffer, place), travel.order.shape[0], travel.back)
        found = take_rows(returned, travel.sent_as)
    return found.reshape(-1, copies, buffer.shape[1])


def _ragged(rows, room: int, chunks: Chunks):
    """The chunks of `rows` at their shards, in a buffer of `room` rows, zeros where nothing came."""
    empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
    begin, length, begin_there, length_back = chunks
    return jax.lax.ragged_all_to_all(rows, empty, begin, length, begin_there, length_back, axis_name=EXPERT)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _send(x, placed, to, copies: int):
    return _spread(x, placed, to, copies)


def _send_forward(x, placed, to, copies):
    return _send(x, placed, to, copies), (placed, to)


def _send_backward(copies, residuals, cotangent):
    placed, to = residuals
    back = _collect(cotangent, placed, to, copies)
    return in_order(back.astype(jnp.float32)).astype(cotangent.dtype), None, None


_send.defvjp(_send_forward, _send_backward)


@jax.custom_vjp
def _bring(buffer, gates, placed, to):
    return _bring_forward(buffer, gates, placed, to)[0]


def _bring_forward(buffer, gates, placed, to):
    back = _collect(buffer, placed, to, gates.shape[1])
    return in_order(back.astype(jnp.float32) * gates[..., None]), (back, gates, placed, to)


def _bring_backward(residuals, cotangent):
    back, gates, placed, to = residuals
    to_buffer = _spread_weighted(cotangent, gates, placed, to, back.dtype)
    to_gates = jnp.sum(back.astype(jnp.float32) * cotangent[:, None], axis=-1)
    return to_buffer, to_gates, None, None


_bring.defvjp(_bring_forward, _bring_backward)
