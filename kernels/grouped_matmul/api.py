"""Grouped matmul over a tiled buffer: each tile's rows by its group's matrix."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.grouped_matmul import pallas_tpu, xla
from kernels.implementation import use_pallas
from kernels.tiles import TileMap


@jax.custom_vjp
def grouped_matmul(
    x: Float[Array, "NB D"], w: Float[Array, "G D F"], tiles: TileMap, offset: Int32[Array, ""]
) -> Float[Array, "NB F"]:
    """Rows of tile t by `w[offset + tiles.group[t]]`, in x's type, accumulated in float32; dead tiles are zero.

    Weights of all layers folded to `[L * E, D, F]` are read in place with `offset = layer * E`. Differentiable in x, w.
    """
    return _form(x, w, tiles).forward(x, w, tiles, offset).astype(x.dtype)


def _form(x, w, tiles):
    """The module that computes this: the portable form or the TPU's."""
    return pallas_tpu if use_pallas("grouped_matmul", pallas_tpu.unsupported(x, w, tiles.tile)) else xla


def _forward(x, w, tiles, offset):
    return grouped_matmul(x, w, tiles, offset), (x, w, tiles, offset)


def _backward(residuals, dy):
    x, w, tiles, offset = residuals
    form = _form(x, w, tiles)
    dx = form.forward(dy, w, tiles, offset, transpose=True).astype(x.dtype)
    return dx, form.weight_gradient(x, dy, tiles, offset, w.shape[0]).astype(w.dtype), None, None


grouped_matmul.defvjp(_forward, _backward)
