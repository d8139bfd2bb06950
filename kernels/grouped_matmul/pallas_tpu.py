"""The TPU's grouped matmul: the grid is (tiles, blocks of the output's columns), a tile's matrix is picked in place.

Consecutive tiles of a group whose matrix is one block read it once. Dead tiles read nothing and write zeros. The
contract is that of the portable form, but rows come back in x's type. The matrices' gradient is asked for in
pretraining only and is left to the portable form.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.grouped_matmul import block_sizes, xla
from kernels.lora_matmul.pallas_blocks import SUBLANES, Plan, call, dot
from kernels.tiles import TileMap

weight_gradient = xla.weight_gradient


@dataclass(frozen=True)
class Form:
    """One kernel at one shape: tiles of `tile` rows by `[inner, outer]` matrices (stored `[outer, inner]` where it is
    the `transpose`), `width` columns of the output at a time.
    """

    tile: int
    groups: int
    inner: int
    outer: int
    width: int
    dtype: jnp.dtype
    transpose: bool

    @property
    def steps(self) -> int:
        """Blocks of a tile's columns."""
        return self.outer // self.width

    @property
    def rows(self) -> int:
        """Places of the buffer, NB."""
        return self.groups * self.tile

    def block(self, width: int) -> pl.BlockSpec:
        """All of a live tile's rows of an array `[NB, width]`."""
        return pl.BlockSpec((self.tile, width), lambda t, _j, visit, *_: (visit[t], 0))

    @property
    def matrix(self) -> pl.BlockSpec:
        """A block of a tile's matrix."""

        def place(t, j, _visit, matrix, live, *_):
            block = jnp.where(t < live[0], j, self.steps - 1)
            return (matrix[t], block, 0) if self.transpose else (matrix[t], 0, block)

        shape = (self.width, self.inner) if self.transpose else (self.inner, self.width)
        return pl.BlockSpec((1, *shape), place)

    @property
    def result(self) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """The rows that come out, and a block of a tile's."""
        block = pl.BlockSpec((self.tile, self.width), lambda t, j, *_: (t, j))
        return jax.ShapeDtypeStruct((self.rows, self.outer), self.dtype), block

    def product(self, x, w):
        """A tile's rows by a block of its matrix, float32."""
        return dot(x, w, (1, 1 if self.transpose else 0))

    def cost(self, w) -> pl.CostEstimate:
        """As if every tile were live and had a matrix of its own."""
        size = self.dtype.itemsize
        moved = self.rows * (self.inner + self.outer) * size + self.groups * self.inner * self.outer * w.dtype.itemsize
        return pl.CostEstimate(flops=2 * self.rows * self.inner * self.outer, transcendentals=0, bytes_accessed=moved)


def form_of(x, w, tiles: TileMap, transpose: bool = False) -> Form:
    """Raises ValueError where no block divides the columns."""
    inner, outer = (w.shape[2], w.shape[1]) if transpose else w.shape[1:]
    width = block_sizes.width_of_block(outer, inner, w.dtype.itemsize)
    if width is None:
        raise ValueError(f"no block divides {outer} columns")
    return Form(tiles.tile, tiles.group.shape[0], inner, outer, width, x.dtype, transpose)


def unsupported(x, w, tile: int) -> str | None:
    """Why this kernel and its gradient's cannot take rows x in such tiles by these matrices, or None."""
    if tile % SUBLANES:
        return f"tiles of {tile} rows (a multiple of {SUBLANES} is needed)"
    if x.dtype != w.dtype or x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"rows of {x.dtype} and matrices of {w.dtype} (both float32 or both bfloat16 are needed)"
    for inner, outer in (w.shape[1:], w.shape[:0:-1]):
        if block_sizes.width_of_block(outer, inner, w.dtype.itemsize) is None:
            return f"a side of {outer}, which is long and no multiple of {block_sizes.LANES}"
    return None


def visits(tiles: TileMap, offset):
    """Prefetched arrays: the tile to read at each tile (its own, or the last live one), its matrix, and live tiles."""
    each = jnp.arange(tiles.group.shape[0], dtype=jnp.int32)
    visit = jnp.minimum(each, jnp.maximum(tiles.live - 1, 0))
    return visit, offset + jnp.maximum(tiles.group[visit], 0), tiles.live[None]


def forward(x, w, tiles: TileMap, offset, transpose: bool = False):
    """`x [NB, D]` by tiles with `w [G, D, F]` (or its transpose), accumulated in float32, in x's type."""
    form = form_of(x, w, tiles, transpose)
    operands = {"x": (x, form.block(form.inner)), "w": (w, form.matrix)}
    plan = Plan(visits(tiles, offset), operands, {"y": form.result}, {}, {})
    name = "grouped_matmul_transposed" if transpose else "grouped_matmul"
    return call(form, name, _body, plan, form.cost(w))["y"]


def _body(form, ref, _visit, _matrix, live):
    """One block of one tile."""
    t = pl.program_id(0)

    @pl.when(t < live[0])
    def _live():
        ref["y"][...] = form.product(ref["x"][...], ref["w"][0]).astype(form.dtype)

    @pl.when(t >= live[0])
    def _dead():
        ref["y"][...] = jnp.zeros_like(ref["y"])
