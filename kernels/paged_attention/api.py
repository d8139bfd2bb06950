"""Causal attention over paged keys and values: prefill, decode and training are one operation."""

from functools import partial
from typing import cast

import jax
from jaxtyping import Array, Float, Int32

from kernels.implementation import use_pallas
from kernels.paged_attention import pallas_tpu, xla
from kernels.paged_attention.xla import Latent, Layout


def attend(
    q: Float[Array, "T H K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T G K"] | None,
    keys: Float[Array, "L P G B K"],
    values: Float[Array, "L P G B K"] | None,
    layer: Int32[Array, ""],
    at: Layout,
    latent: Latent | None = None,
) -> tuple[Float[Array, "T H V"], Float[Array, "L P G B K"], Float[Array, "L P G B K"] | None]:
    """Write this step's keys and values to their pages, then attend to every key at or before each query.

    Where keys are `latent` they hold their values, and v and values are None. Gradients reach q, k, v where every
    sequence lies whole in this batch, in tiles; the pool is data.
    """
    new, pools = ((k,), (keys,)) if latent is not None else ((k, v), (keys, values))
    if (v is None, values is None) != (latent is not None,) * 2:
        raise ValueError("values come with their keys where those are latent, and beside them where not")
    o, pools = cast(tuple, _attend(latent, q, new, jax.lax.stop_gradient(pools), layer, at))
    pools = jax.lax.stop_gradient(pools)
    return o, pools[0], None if latent is not None else pools[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(latent, q, new, pools, layer, at):
    return _forward(latent, q, new, pools, layer, at)[0]


def _form(q, keys, at, latent):
    """The module that computes this: the portable form or the TPU's."""
    return pallas_tpu if use_pallas("paged_attention", pallas_tpu.unsupported(q, keys, at, latent)) else xla


def _forward(latent, q, new, pools, layer, at):
    form = _form(q, pools[0], at, latent)
    pools = form.write(pools, new, layer, at)
    o, lse = form.forward(q, pools, layer, at, latent)
    return (o, tuple(pools)), (q, new, o, lse, at)


def _backward(latent, residuals, cotangents):
    q, new, o, lse, at = residuals
    # The pool that was written has the heads, the dtype and the page size that count.
    do, pools = cotangents
    dq, *dnew = _form(q, pools[0], at, latent).backward((q, *new), (o, lse), do, at, latent)
    return dq, tuple(dnew), None, None, None


_attend.defvjp(_forward, _backward)
