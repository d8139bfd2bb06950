"""An expert layer's projection with LoRA inside, keyed by (expert, slot)."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.expert_lora import xla
from kernels.factors import Factors
from kernels.tiles import TileMap


@jax.custom_vjp
def expert_lora(
    x: Float[Array, "NB D"],
    z: Float[Array, "NB R"] | None,
    w: Float[Array, "W D F"],
    factors: Factors,
    tiles: TileMap,
    offset: Int32[Array, ""],
) -> tuple[Float[Array, "NB F"], Float[Array, "NB R"] | None]:
    """Rows of the expert buffer by their expert's matrix, each plus its own adapter's delta; in x's type.

    `tiles` groups by expert (matrix `offset + e`), subgroup 0 the bare base and s + 1 slot s. Factors have an expert
    axis; one that a layer's experts share stays outside: without `a` the shrunk, scaled rows come as `z`; without `b`
    y is the base's, and the shrunk rows are returned beside it to be expanded outside (zeros where a row has no slot).
    Rows of the bare base keep the bits of `grouped_matmul`. Differentiable in x, z, a and b; `w` is frozen.
    """
    return _forward(x, z, w, factors, tiles, offset)[0]


def _forward(x, z, w, factors, tiles, offset):
    y, inner = xla.forward(x, z, w, factors, tiles, offset)
    return (y, inner if factors.b is None else None), (x, w, factors, tiles, offset, inner)


def _backward(residuals, cotangents):
    x, w, factors, tiles, offset, inner = residuals
    dx, dz, da, db = xla.backward(x, w, factors, tiles, offset, inner, cotangents)
    return dx, dz, None, Factors(da, db, None, None), None, None  # pyright: ignore[reportArgumentType]


expert_lora.defvjp(_forward, _backward)
