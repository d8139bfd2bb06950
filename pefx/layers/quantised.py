"""Weights of the base in 8 bits with a float32 scale for each block, multiplied out where they are used.

A number is its 8 bits times its block's scale, rounded once to the base's precision: the same bits at every use, so
what holds for a base to the bit holds for it in 8 bits. It is another base than the unquantised one, by little.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Array, Int32

from pefx.config import ModelConfig, block_of

# Form -> type of the stored numbers, and the largest that a block's largest number becomes.
FORMS = {"int8": (np.dtype(np.int8), 127.0), "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0)}
# Axes of matrices that take most of a base's memory. Embeddings, routers, norms and biases stay as they are.
WIDE = {"embed", "heads", "kv_heads", "mlp", "latent"}


class Quantised(nnx.Module):
    """Stacked matrices: `values [..., m, n]` of 8 bits, `scales [..., m / a, n / b]` float32 for blocks of a x b.

    Stands for an `nnx.Param`: `[...]` gives the matrices, in `dtype`.
    """

    def __init__(self, values: nnx.Param[jax.Array], scales: nnx.Param[jax.Array], dtype: str):
        self.values, self.scales, self.dtype = values, scales, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, key: Any) -> Array:
        return multiplied_out(self.values[key], self.scales[key], self.dtype)

    def layer(self, index: Int32[Array, ""]) -> Array:
        """The matrices of one layer: only those are multiplied out."""
        values, scales = (
            jax.lax.dynamic_index_in_dim(x[...], index, keepdims=False) for x in (self.values, self.scales)
        )
        return multiplied_out(values, scales, self.dtype)


def blocks_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a block of matrices of that shape."""
    return block_of(shape[-2]), block_of(shape[-1])


def multiplied_out(values: Array, scales: Array, dtype: str) -> Array:
    """The numbers that 8-bit `values [..., m, n]` and `scales [..., m / a, n / b]` mean, rounded once to `dtype`."""
    wide = by_block(values.astype(jnp.float32), scales.shape) * scales[..., :, None, :, None]
    return wide.astype(dtype).reshape(values.shape)


def quantise(wide: Any, form: str, blocks: tuple[int, int], xp: Any = np) -> tuple[Any, Any]:
    """8-bit values and scales of float32 matrices `[..., m, n]`, by the largest magnitude of each block.

    `xp` is the namespace of arrays: numpy, or jax.numpy.
    """
    dtype, largest = FORMS[form]
    grid = (*wide.shape[:-2], wide.shape[-2] // blocks[0], wide.shape[-1] // blocks[1])
    parts = by_block(wide, grid)
    # A product, not a quotient: XLA makes one of a division by a constant, and both must give the same bits.
    scales = xp.max(xp.abs(parts), axis=(-3, -1)) * xp.float32(1 / largest)
    scales = xp.where(scales > 0, scales, xp.float32(1))
    parts = xp.clip(parts / scales[..., :, None, :, None], -xp.float32(largest), xp.float32(largest))
    values = (xp.round(parts) if form == "int8" else parts).astype(dtype)
    return values.reshape(wide.shape), scales


def by_block(x: Any, grid: tuple[int, ...]) -> Any:
    """`[..., m, n]` as `[..., m / a, a, n / b, b]`, where `grid` is `[..., m / a, n / b]`."""
    rows, columns = grid[-2:]
    return x.reshape(*x.shape[:-2], rows, x.shape[-2] // rows, columns, x.shape[-1] // columns)


def quantise_modules(base: nnx.Module, config: ModelConfig) -> None:
    """Replace the large matrices of `base` by their 8-bit form, in place."""
    for _, module in list(nnx.iter_modules(base)):
        for name, variable in list(vars(module).items()):
            if not isinstance(variable, nnx.Param) or not quantisable(variable):
                continue
            axes = variable.get_metadata()["out_sharding"]
            wide = variable[...].astype(jnp.float32)
            values, scales = quantise(wide, config.weights, blocks_of(variable.shape), jnp)
            values, scales = nnx.Param(values, out_sharding=axes), nnx.Param(scales, out_sharding=axes)
            setattr(module, name, Quantised(values, scales, config.precision))


def quantisable(variable: nnx.Variable) -> bool:
    """Whether a parameter is matrices of which a block can have a scale."""
    axes = variable.get_metadata()["out_sharding"]
    return len(axes) >= 3 and set(axes[-2:]) <= WIDE


def bytes_of(shape: tuple[int, ...]) -> int:
    """Memory of matrices of that shape in 8 bits with their scales."""
    rows, columns = blocks_of(shape)
    return math.prod(shape) + 4 * math.prod(shape) // (rows * columns)
