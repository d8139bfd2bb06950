"""What the TPU's kernels of a mixed LoRA product share: one order of blocks, one way to multiply, in every form.

The inner product is computed transposed, `z^T = a x^T`: a tile's rows are what the matrix unit holds and a factor of
few rows is what streams through it. A row is a column of that product, so its bits do not depend on the other rows.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
    if width is None:
        raise ValueError(f"no block divides a factor of width {factor.shape[2]}")
    return Axis(width, factor.shape[2] // width)


class Operands(NamedTuple):
    """Arrays of one product and its gradients, those there are: rows, factors of the whole bank, and inner products."""

    x: Any = None
    a: Any = None
    z: Any = None
    b: Any = None
    y: Any = None
    dz: Any = None
    dy: Any = None

    @property
    def rows(self) -> int:
        """Number of rows, T."""
        return next(array for array in (self.x, self.z) if array is not None).shape[0]

    def sum_of(self, width: int) -> jax.ShapeDtypeStruct:
        """Shape of y plus deltas, in y's dtype; of deltas alone in float32."""
        return jax.ShapeDtypeStruct((self.rows, width), jnp.float32 if self.y is None else self.y.dtype)


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

    @property
    def part(self) -> str:
        """What a kernel of half the product has in its name."""
        return "" if self.both else "_shrink" if self.inner.blocks else "_expand"

    def rows_block(self, axis: Axis, position):
        """A block of the axis for one group's rows, in an array of all rows.

        `position` gives (group, column block) from the place in the grid and the prefetched arrays.
        """

        def starts(*place):
            group, column = position(*place)
            start = pl.multiple_of(self.first + group * self.tile, SUBLANES)
            return start, 0 if axis.blocks == 1 else pl.multiple_of(column * axis.width, block_sizes.LANES)

        return pl.BlockSpec((pl.Element(self.tile), pl.Element(axis.width)), starts)

    def cost(self, passes: int, *arrays, each=()) -> pl.CostEstimate:
        """Of `passes` products each with a and b. These rows of the arrays are moved, a factor's slot for each group.

        Of the factors in `each`, a slot is moved for each row.
        """
        rows, columns = self.groups * self.tile, self.inner.total + self.outer.total
        moved = 0
        for array, groups in [*((a, self.groups) for a in arrays), *((a, rows) for a in each)]:
            if array is not None:
                of_one = array.size // array.shape[0] * array.dtype.itemsize
                moved += of_one * (groups if array.ndim == 3 else rows)
        flops = 2 * passes * rows * self.rank * columns
        return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved)


def dot(left, right, contract: tuple[int, int]):
    """A product over dimension `contract` of each side, accumulated in float32."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=exact, preferred_element_type=jnp.float32)


def chunks(width: int, most: int) -> list[slice]:
    """An axis in pieces."""
    return [slice(start, min(start + most, width)) for start in range(0, width, most)]


@dataclass(frozen=True)
class Plan:
    """What a kernel reads and writes, by name, each with its blocks; what is None is left out.

    `operands` are (array, block), `results` (shape, block), `updated` names the result that takes an operand's place.
    """

    prefetched: tuple[Any, ...]
    operands: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[Any, Any]]
    scratch: dict[str, Any]
    updated: dict[str, str]


@runtime_checkable
class Grid(Protocol):
    """What is walked: `groups` of rows, in `steps` turns each."""

    @property
    def groups(self) -> int: ...

    @property
    def steps(self) -> int: ...


def call(form: Grid, name: str, body, plan: Plan, cost: pl.CostEstimate) -> dict[str, Any]:
    """The results, by name, of `body(form, ref, *prefetched)` at each place of a grid walked in order.

    `ref` holds the operands, results and scratch by name.
    """
    operands = {key: pair for key, pair in plan.operands.items() if pair[0] is not None}
    names, n = (*operands, *plan.results, *plan.scratch), len(plan.prefetched)

    def kernel(*refs):
        body(form, dict(zip(names, refs[n:], strict=True)), *refs[:n])

    # Within a scope a kernel keeps its name where it is differentiated.
    with jax.named_scope("pallas"):
        found = pl.pallas_call(
            kernel,
            name=name,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=n,
                grid=(form.groups, form.steps),
                in_specs=[block for _, block in operands.values()],
                out_specs=[block for _, block in plan.results.values()],
                scratch_shapes=list(plan.scratch.values()),
            ),
            out_shape=[shape for shape, _ in plan.results.values()],
            input_output_aliases={
                n + k: list(plan.results).index(plan.updated[key])
                for k, key in enumerate(operands)
                if plan.updated.get(key) in plan.results
            },
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary", "arbitrary"), disable_bounds_checks=True
            ),
            cost_estimate=cost,
            interpret=interpreter(),
        )(*plan.prefetched, *(array for array, _ in operands.values()))
    return dict(zip(plan.results, found, strict=True))
