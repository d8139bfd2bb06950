"""The TPU's form of the mixed LoRA product: single rows in one kernel, tiles in another, both in place.

The contract is that of the portable form. A bank whose rank is no multiple of eight is padded, a copy at each call:
allocate banks at such a rank.
"""

from typing import Any

import jax.numpy as jnp

from kernels.factors import Factors
from kernels.lora_matmul import block_sizes
from kernels.lora_matmul.pallas_backward import run_backward
from kernels.lora_matmul.pallas_blocks import SUBLANES, Form, Operands, axis_of
from kernels.lora_matmul.pallas_rows import single_rows
from kernels.lora_matmul.pallas_run import run
from kernels.rows import Rows


def unsupported(x, factors: Factors, rows: Rows) -> str | None:
    """Why these kernels cannot take these shapes, or None."""
    if rows.tiles and rows.tile % SUBLANES:
        return f"tiles of {rows.tile} rows (a multiple of {SUBLANES} is needed)"
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"rows of {x.dtype} (float32 or bfloat16 is needed)"
    for factor, most in ((factors.a, block_sizes.INNER), (factors.b, block_sizes.OUTER_BACKWARD)):
        if factor is None:
            continue
        rank, width = factor.shape[1:]
        if rank > 64:
            return f"rank {rank} (at most 64)"
        if block_sizes.width_of_block(width, _padded(rank), most) is None:
            return f"a factor of width {width}, which is long and no multiple of {block_sizes.LANES}"
    return None


def forward(y, x, factors: Factors, rows: Rows):
    """`y` plus each row's delta, the bits of `y` where a row has no slot; and z for `backward`."""
    return _unpadded(rows, *_product(rows, factors, x=x, y=y))


def shrink(x, factors: Factors, rows: Rows):
    """`scales[s] x a[s]^T` for each row, in x's dtype; zeros where a row has no slot."""
    z = _unpadded(rows, *_product(rows, factors, x=x))[1]
    return z[:, : factors.a.shape[1]]


def expand(y, z, factors: Factors, rows: Rows):
    """`y` plus `z b[s]` for each row, the bits of `y` where a row has no slot."""
    return _unpadded(rows, *_product(rows, factors, z=_pad(z, 1), y=y))[0]


def backward(x, factors: Factors, rows: Rows, z, dy):
    """Gradients of x, a and b; rows without a slot have none. `z` is what `forward` gave."""
    if _padded(factors.a.shape[1]) * (factors.a.shape[2] + factors.b.shape[2]) <= block_sizes.SUMS:
        dx, da, _, db = _gradients(rows, factors, x=x, z=z, dy=dy)
    else:
        _, _, dz, db = _gradients(rows, factors, z=z, dy=dy)
        dx, da, _, _ = _gradients(rows, factors, x=x, dz=dz)
    return dx, _like(da, factors.a), _like(db, factors.b)


def shrink_backward(x, factors: Factors, rows: Rows, dz):
    """Gradients of x and a from that of `shrink`."""
    dx, da, _, _ = _gradients(rows, factors, x=x, dz=_pad(dz, 1))
    return dx, _like(da, factors.a)


def expand_backward(z, factors: Factors, rows: Rows, dy):
    """Gradients of z and b from that of `expand`."""
    _, _, dz, db = _gradients(rows, factors, z=_pad(z, 1), dy=dy)
    return dz[:, : z.shape[1]].astype(z.dtype), _like(db, factors.b)


def _product(rows: Rows, factors: Factors, x: Any = None, z: Any = None, y: Any = None) -> tuple[Any, Any]:
    """(out, z) of all rows, single rows padded to whole groups."""
    x, z, y = (_with_whole_groups(rows, array) for array in (x, z, y))
    a = _pad(factors.a, 1) if x is not None else None
    b = _pad(factors.b, 1) if y is not None or z is not None else None
    given = Operands(x=x, a=a, z=z, b=b, y=y)
    at, scale = _looked_up(rows, factors)
    singles = _whole(rows.singles)
    found = (y, None)
    if singles:
        gap = singles - rows.singles
        own = jnp.pad(at[: rows.singles], (0, gap), constant_values=-1), jnp.pad(scale[: rows.singles], (0, gap))
        form = _form(given, 0, SUBLANES, singles // SUBLANES, block_sizes.OUTER)
        found = single_rows(form, *own, given)
    if rows.tiles:
        form = _form(given, singles, rows.tile, rows.tiles, block_sizes.OUTER)
        if y is not None:
            given = given._replace(y=found[0])
        found = run(form, at[rows.singles :], scale[rows.singles :], given, into=found)
    return found


def _gradients(rows: Rows, factors: Factors, x=None, dz=None, z=None, dy=None) -> tuple[Any, ...]:
    """(dx, da, dz, db) of all rows. A single row is the first of a tile of its own, the others of which are zeros."""
    a = _pad(factors.a, 1) if x is not None else None
    b = _pad(factors.b, 1) if dy is not None else None
    at, scale = _looked_up(rows, factors)
    sums, of_x, of_z = None, [], []
    for r, g, tile in rows.parts():
        own = {name: _tiles_of(array, r, tile) for name, array in (("x", x), ("dz", dz), ("z", z), ("dy", dy))}
        given = Operands(a=a, b=b, **own)
        form = _form(given, 0, max(tile, SUBLANES), g.stop - g.start, block_sizes.OUTER_BACKWARD)
        dx, da, dz_own, db = run_backward(form, at[g], scale[g], given, onto=sums)
        of_x.append(_rows_of(dx, tile))
        of_z.append(_rows_of(dz_own, tile))
        sums = (da, db)
    da, db = sums or (None, None)
    dx, dz = (jnp.concatenate(parts) if parts[0] is not None else None for parts in (of_x, of_z))
    return dx, da, dz, db


def _rows_of(array, tile: int):
    """Rows of tiles, or the one row of each tile that held a single one."""
    return array[::SUBLANES] if array is not None and tile == 1 else array


def _tiles_of(array, rows: slice, tile: int):
    """These rows; single ones each followed by zeros that fill a tile."""
    if array is None:
        return None
    part = array[rows]
    if tile > 1:
        return part
    tiles = jnp.zeros((part.shape[0], SUBLANES, part.shape[1]), part.dtype).at[:, 0].set(part)
    return tiles.reshape(-1, part.shape[1])


def _looked_up(rows: Rows, factors: Factors):
    """Of each group, its row of the bank, -1 for none, and its scale."""
    at = jnp.where(rows.owner < 0, -1, factors.offset + rows.owner)
    return at, factors.scales[jnp.maximum(rows.owner, 0)]


def _form(given: Operands, first: int, tile: int, groups: int, most: int) -> Form:
    """One kernel's form, of rows of x's or z's dtype; blocks of b of at most `most` columns."""
    rank = next(factor for factor in (given.a, given.b) if factor is not None).shape[1]
    dtype = next(array for array in (given.x, given.z) if array is not None).dtype
    inner, outer = axis_of(given.a, block_sizes.INNER), axis_of(given.b, most)
    return Form(first, tile, groups, rank, dtype, inner, outer)


def _like(total, factor):
    """A gradient in the rank and dtype of its factor."""
    return total[:, : factor.shape[1]].astype(factor.dtype)


def _whole(singles: int) -> int:
    return -(-singles // SUBLANES) * SUBLANES


def _padded(rank: int) -> int:
    return -(-rank // SUBLANES) * SUBLANES


def _pad(array, axis: int):
    """Zeros up to a multiple of eight along an axis of ranks."""
    if array is None:
        return None
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, _padded(array.shape[axis]) - array.shape[axis])
    return jnp.pad(array, widths) if widths[axis][1] else array


def _with_whole_groups(rows: Rows, array):
    """The single rows followed by rows of nobody, up to a whole group of them."""
    gap = _whole(rows.singles) - rows.singles
    if array is None or not gap:
        return array
    between = jnp.zeros((gap, array.shape[1]), array.dtype)
    return jnp.concatenate([array[: rows.singles], between, array[rows.singles :]])


def _unpadded(rows: Rows, *arrays) -> tuple[Any, ...]:
    """Without the rows of nobody."""
    gap = _whole(rows.singles) - rows.singles
    if not gap:
        return arrays
    return tuple(None if a is None else jnp.concatenate([a[: rows.singles], a[rows.singles + gap :]]) for a in arrays)
