"""An expert layer's projection with LoRA inside, keyed by (expert, slot)."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, Int32

from kernels.expert_lora import pallas_tpu, xla
from kernels.expert_lora.block_sizes import CHUNKS, DECODE, TPU_CHUNKS, TPU_DECODE
from kernels.factors import Factors
from kernels.implementation import use_pallas
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


def _form(x, w, factors, tiles):
    """The module that computes this: the portable form or the TPU's."""
    problem = pallas_tpu.unsupported(x, w, factors, (tiles.tile, tiles.subtile))
    return pallas_tpu if use_pallas("expert_lora", problem) else xla


def _forward(x, z, w, factors, tiles, offset):
    y, inner = _form(x, w, factors, tiles).forward(x, z, w, factors, tiles, offset)
    return (y, inner if factors.b is None else None), (x, w, factors, tiles, offset, inner)


def _backward(residuals, cotangents):
    x, w, factors, tiles, offset, inner = residuals
    form = _form(x, w, factors, tiles)
    dx, dz, da, db = form.backward(x, w, factors, tiles, offset, inner, cotangents)
    return dx, dz, None, Factors(da, db, None, None), None, None  # pyright: ignore[reportArgumentType]


expert_lora.defvjp(_forward, _backward)


def tile_sizes(
    x: Float[Array, "T D"], projections: Sequence[tuple[Float[Array, "_ _ _"], Factors | None]], singles: bool
) -> tuple[int, int] | None:
    """(tile, subtile) for rows x, single ones or runs, that go through these (matrices, adapters).

    None where runs with adapters are better cut into windows (`kernels.expert_mlp`).
    """
    sizes = TPU_DECODE if singles else TPU_CHUNKS
    problems = [pallas_tpu.unsupported(x, w, factors, sizes) for w, factors in projections]
    if use_pallas("expert_lora", next((problem for problem in problems if problem), None)):
        return sizes
    if singles:
        return DECODE
    return CHUNKS if all(factors is None for _, factors in projections) else None
