"""What the TPU's kernels of a mixed LoRA product share: one order of blocks, one way to multiply, in every form.

The inner product is computed transposed, `z^T = a x^T`: a tile's rows are what the matrix unit holds and a factor of
few rows is what streams through it. A row is a column of that product, so its bits do not depend on the other rows.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.implementation import interpreter
from kernels.lora_matmul import block_sizes

SUBLANES = 8
CHUNK = 256  # columns of a product at once: more of them would not fit the registers


@dataclass(frozen=True)
class Axis:
    """A factor's long axis in `blocks` blocks of `width`; a missing factor has an axis of no blocks."""

    width: int
    blocks: int

    @property
    def total(self) -> int:
        return self.width * self.blocks


def axis_of(factor, most: int) -> Axis:
    """The axis of a factor `[G, R, width]`, or of None."""
    if factor is None:
        return Axis(0, 0)
    width = block_sizes.width_of_block(factor.shape[2], factor.shape[1], most)
    return Axis(width, factor.shape[2] // width)


@dataclass(frozen=True)
class Form:
    """One kernel at one shape: groups of `tile` rows from row `first` on, rank `rank`, rows of `dtype`."""

    first: int
    tile: int
    groups: int
    rank: int
    dtype: jnp.dtype
    inner: Axis
    outer: Axis

    @property
    def steps(self) -> int:
        """Turns of a group: the last block of one axis and the first of the other share one."""
        return max(self.inner.blocks + self.outer.blocks - (self.both), 1)

    @property
    def both(self) -> bool:
        return bool(self.inner.blocks and self.outer.blocks)

    def rows_block(self, axis: Axis, position):
        """A block of the axis for one group's rows, in an array of all rows.

        `position` gives (group, column block) from the place in the grid and the prefetched arrays.
        """

        def starts(*place):
            group, column = position(*place)
            start = pl.multiple_of(self.first + group * self.tile, SUBLANES)
            return start, 0 if axis.blocks == 1 else pl.multiple_of(column * axis.width, block_sizes.LANES)

        return pl.BlockSpec((pl.Element(self.tile), pl.Element(axis.width)), starts)

    def cost(self, passes: int, *arrays) -> pl.CostEstimate:
        """Of `passes` products each with a and b: what of the arrays these rows touch, at most."""
        rows, columns = self.groups * self.tile, self.inner.total + self.outer.total
        moved = sum(
            min(a.shape[0], self.groups) * a.size // a.shape[0] * a.dtype.itemsize
            if a.ndim == 3
            else rows * a.shape[1] * a.dtype.itemsize
            for a in arrays
            if a is not None
        )
        return pl.CostEstimate(
            flops=2 * passes * rows * self.rank * columns, transcendentals=0, bytes_accessed=int(moved)
        )


def dot(left, right, contract: tuple[int, int]):
    """A product over dimension `contract` of each side, accumulated in float32."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=exact, preferred_element_type=jnp.float32)


def chunks(width: int, most: int) -> list[slice]:
    """An axis in pieces."""
    return [slice(start, min(start + most, width)) for start in range(0, width, most)]


def call(body, name: str, spec, out_shape, aliases: dict[int, int], cost: pl.CostEstimate):
    """The `pallas_call` of a kernel whose grid is walked in order."""
    parameters = pltpu.CompilerParams(
        dimension_semantics=("arbitrary",) * len(spec.grid),
        disable_bounds_checks=True,
    )
    return pl.pallas_call(
        body,
        name=name,
        grid_spec=spec,
        out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=parameters,
        cost_estimate=cost,
        interpret=interpreter(),
    )
