"""An expert layer's projection with LoRA inside, keyed by (expert, slot)."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.expert_lora import xla
from kernels.factors import Factors
from kernels.tiles import TileMap


@jax.custom_vjp
def expert_lora(
    x: Float[Array, "NB D"], w: Float[Array, "W D F"], factors: Factors, tiles: TileMap, offset: Int32[Array, ""]
) -> Float[Array, "NB F"]:
    """Rows of the expert buffer by their expert's matrix, each plus its own adapter's delta; in x's type.

    `tiles` groups by expert (matrix `offset + e`), subgroup 0 the bare base and s + 1 slot s. Rows of the bare base
    keep the bits of `grouped_matmul`. Differentiable in x and the factors a and b; `w` is frozen.
    """
    return xla.forward(x, w, factors, tiles, offset)[0]


def _forward(x, w, factors, tiles, offset):
    y, inner = xla.forward(x, w, factors, tiles, offset)
    return y, (x, w, factors, tiles, offset, inner)


def _backward(residuals, dy):
    x, w, factors, tiles, offset, inner = residuals
    dx, da, db = xla.backward(x, w, factors, tiles, offset, inner, dy)
    return dx, None, Factors(da, db, None, None), None, None  # pyright: ignore[reportArgumentType]


expert_lora.defvjp(_forward, _backward)
