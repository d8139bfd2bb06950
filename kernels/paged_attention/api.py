"""Causal attention over paged keys and values: prefill, decode and training are one operation."""

from typing import cast

import jax
from jaxtyping import Array, Float, Int32

from kernels.implementation import use_pallas
from kernels.paged_attention import pallas_tpu, xla
from kernels.paged_attention.xla import Layout


def attend(
    q: Float[Array, "T H K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T G K"],
    keys: Float[Array, "L P G B K"],
    values: Float[Array, "L P G B K"],
    layer: Int32[Array, ""],
    at: Layout,
) -> tuple[Float[Array, "T H K"], Float[Array, "L P G B K"], Float[Array, "L P G B K"]]:
    """Write this step's keys and values to their pages, then attend to every key at or before each query.

    Gradients reach q, k, v where every sequence lies whole in this batch, in tiles; the pool is data.
    """
    pool = jax.lax.stop_gradient((keys, values))
    o, keys, values = cast(tuple, _attend(q, k, v, *pool, layer, at))
    return o, jax.lax.stop_gradient(keys), jax.lax.stop_gradient(values)


@jax.custom_vjp
def _attend(q, k, v, keys, values, layer, at):
    return _forward(q, k, v, keys, values, layer, at)[0]


def _form(q, keys, at):
    """The module that computes this: the portable form or the TPU's."""
    return pallas_tpu if use_pallas("paged_attention", pallas_tpu.unsupported(q, keys, at)) else xla


def _forward(q, k, v, keys, values, layer, at):
    form = _form(q, keys, at)
    keys, values = form.write((keys, values), (k, v), layer, at)
    o, lse = form.forward(q, keys, values, layer, at)
    return (o, keys, values), (q, k, v, o, lse, at)


def _backward(residuals, cotangents):
    q, k, v, o, lse, at = residuals
    # The pool that was written has the heads, the dtype and the page size that count.
    return *_form(q, cotangents[1], at).backward(q, k, v, o, lse, cotangents[0], at), None, None, None, None


_attend.defvjp(_forward, _backward)
