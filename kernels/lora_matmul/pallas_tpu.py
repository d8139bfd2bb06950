"""The TPU's form of the mixed LoRA product: single rows in one kernel, tiles in another, both in place.

The contract is that of the portable form. A bank whose rank is no multiple of eight is padded, a copy at each call:
allocate banks at such a rank.
"""

import jax.numpy as jnp

from kernels.factors import Factors
from kernels.lora_matmul import block_sizes
from kernels.lora_matmul.pallas_blocks import SUBLANES, Form, axis_of
from kernels.lora_matmul.pallas_rows import single_rows
from kernels.lora_matmul.pallas_run import run
from kernels.rows import Rows


def unsupported(x, factors: Factors, rows: Rows) -> str | None:
    """Why these kernels cannot take these shapes, or None."""
    if rows.tiles and rows.tile % SUBLANES:
        return f"tiles of {rows.tile} rows (a multiple of {SUBLANES} is needed)"
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"rows of {x.dtype} (float32 or bfloat16 is needed)"
    for factor, most in ((factors.a, block_sizes.INNER), (factors.b, block_sizes.OUTER)):
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


def expand(z, factors: Factors, rows: Rows):
    """`z b[s]` for each row, float32; zeros where a row has no slot."""
    return _unpadded(rows, *_product(rows, factors, z=_pad(z, 1)))[0]


def _product(rows: Rows, factors: Factors, x=None, z=None, y=None):
    """(out, z) of all rows, single rows padded to whole groups."""
    x, z, y = (_with_whole_groups(rows, array) for array in (x, z, y))
    a = _pad(factors.a, 1) if x is not None else None
    b = _pad(factors.b, 1) if y is not None or z is not None else None
    inner, outer = axis_of(a, block_sizes.INNER), axis_of(b, block_sizes.OUTER)
    rank, dtype = (a if a is not None else b).shape[1], (x if x is not None else z).dtype
    at = jnp.where(rows.owner < 0, -1, factors.offset + rows.owner)
    scale = factors.scales[jnp.maximum(rows.owner, 0)]
    singles = _whole(rows.singles)
    out, found = y, []
    if singles:
        form = Form(0, SUBLANES, singles // SUBLANES, rank, dtype, inner, outer)
        gap = singles - rows.singles
        own = jnp.pad(at[: rows.singles], (0, gap), constant_values=-1), jnp.pad(scale[: rows.singles], (0, gap))
        part = None if z is None else z[:singles]
        total = singles + rows.tiles * rows.tile
        out, inner_product = single_rows(form, *own, x=x, a=a, z=part, b=b, y=y, total=total)
        found.append(inner_product)
    if rows.tiles:
        form = Form(singles, rows.tile, rows.tiles, rank, dtype, inner, outer)
        part = None if z is None else z[singles:]
        target = {"y": out} if y is not None else {"into": out}
        out, inner_product = run(form, at[rows.singles :], scale[rows.singles :], x=x, a=a, z=part, b=b, **target)
        found.append(inner_product)
    return out, jnp.concatenate(found) if x is not None else None


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


def _unpadded(rows: Rows, *arrays):
    """Without the rows of nobody."""
    gap = _whole(rows.singles) - rows.singles
    if not gap:
        return arrays
    return tuple(
        None if a is None else jnp.concatenate([a[: rows.singles], a[rows.singles + gap :]]) for a in arrays
    )
