"""Portable mixed LoRA product: a batched small matmul for each group of rows with one slot, no sorting.

Bits of a row do not depend on its group's other rows: every product has at least two rows, and a row alone is doubled.
Bits of a slot's gradient do not depend on other slots: its groups hold its own rows only and are summed in order.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.rows import Rows
from kernels.tiles import sum_by_group


def forward(x, factors: Factors, rows: Rows) -> tuple[Float[Array, "T F"], list[Array]]:
    """`scales[s] (x a[s]^T) b[s]` for each row, float32, any value where a row has no slot; and the inner products.

    The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    """
    deltas, inner = [], []
    for r, g, m in rows.parts():
        slots, xt = rows.owner[g], grouped(x[r], m)
        z = dot("gmd,grd->gmr", xt, of_slots(factors.a, slots, factors.offset, x.dtype))
        z = (z * factors.scales[jnp.maximum(slots, 0)][:, None, None]).astype(x.dtype)
        y = dot("gmr,grf->gmf", z, of_slots(factors.b, slots, factors.offset, x.dtype))
        deltas.append(y[:, :m].reshape(-1, y.shape[-1]))
        inner.append(z)
    return jnp.concatenate(deltas), inner


def grouped(x, m):
    """`[G, m, D]`; one row becomes two equal ones, since a product of a single row takes other bits."""
    xt = x.reshape(-1, m, x.shape[-1])
    return jnp.broadcast_to(xt, (xt.shape[0], 2, xt.shape[2])) if m == 1 else xt


def of_slots(factor, slots, offset, dtype):
    """The factor of each group's slot (slot 0's where it has none; the caller leaves those rows out)."""
    return factor[offset + jnp.maximum(slots, 0)].astype(dtype)


def dot(equation, left, right):
    """A product accumulated in float32."""
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def backward(x, factors: Factors, rows: Rows, inner, dy):
    """Gradients of x, a and b; rows without a slot have none. `inner` is what `forward` gave."""
    dx, lefts, rights, indices = [], [], [], []
    for (r, g, m), z in zip(rows.parts(), inner, strict=True):
        slots = rows.owner[g]
        live = (slots >= 0)[:, None, None]
        xt, dyt = grouped(x[r], m), grouped(dy[r], m).astype(x.dtype)
        if m == 1:  # the doubled row counts once
            dyt = dyt * jnp.asarray([1, 0], dyt.dtype)[None, :, None]
        dz = dot("gmf,grf->gmr", dyt, of_slots(factors.b, slots, factors.offset, x.dtype))
        # Chosen, not multiplied by zero: what a slot holds must not reach a row that is not its own, not even as NaN.
        dz = jnp.where(live, dz * factors.scales[jnp.maximum(slots, 0)][:, None, None], 0.0).astype(x.dtype)
        part = dot("gmr,grd->gmd", dz, of_slots(factors.a, slots, factors.offset, x.dtype))
        dx.append(jnp.where(live, part[:, :m], 0.0).reshape(-1, x.shape[-1]))
        lefts.append(dot("gmr,gmd->grd", dz, xt))
        rights.append(dot("gmr,gmf->grf", z, dyt))
        indices.append(jnp.where(slots < 0, -1, factors.offset + slots))
    parts = (jnp.concatenate(lefts), jnp.concatenate(rights))
    da, db = sum_by_group(parts, jnp.concatenate(indices), factors.a.shape[0])
    return jnp.concatenate(dx).astype(x.dtype), da.astype(factors.a.dtype), db.astype(factors.b.dtype)
