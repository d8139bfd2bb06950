"""Portable gains by slot: the numbers of each group of rows with one slot are read once."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.rows import Rows
from kernels.tiles import sum_by_group


def forward(y, gains, offset, rows: Rows) -> Float[Array, "T F"]:
    """See `kernels.slot_gain.api`."""
    return _concatenated(_times(y[r], gains, offset, rows.owner[g], m) for r, g, m in rows.parts())


def backward(y, gains, offset, rows: Rows, dy):
    """Gradients of y and of the gains."""
    dx, parts = [], []
    for r, g, m in rows.parts():
        dx.append(_times(dy[r], gains, offset, rows.owner[g], m))
        product = y[r].astype(jnp.float32) * dy[r].astype(jnp.float32)
        parts.append(_in_order(product.reshape(-1, m, product.shape[-1])))
    index = jnp.where(rows.owner < 0, -1, offset + rows.owner)
    (total,) = sum_by_group([_concatenated(parts)], index, gains.shape[0])
    return _concatenated(dx), total.astype(gains.dtype)


def _times(y, gains, offset, slots, m):
    """Groups of `m` rows by the gains of their slots. Chosen, not multiplied by one: another's NaN stays away."""
    held = gains[offset + jnp.maximum(slots, 0)].astype(jnp.float32)[:, None]
    rows = y.reshape(-1, m, y.shape[-1])
    scaled = (rows.astype(jnp.float32) * held).astype(y.dtype)
    return jnp.where((slots >= 0)[:, None, None], scaled, rows).reshape(y.shape)


def _in_order(groups: Float[Array, "G m F"]) -> Float[Array, "G F"]:
    """The sum of each group's rows, one after another, whatever else there is."""
    total = groups[:, 0]
    for row in range(1, groups.shape[1]):
        total = total + groups[:, row]
    return total


def _concatenated(parts):
    return jnp.concatenate(list(parts))
