"""Portable mixed LoRA product: a batched small matmul for each group of rows with one slot, no sorting.

Bits of a row do not depend on its group's other rows: every product has at least two rows, and a row alone is doubled.
Bits of a slot's gradient do not depend on other slots: its groups hold its own rows only and are summed in order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.rows import Rows
from kernels.tiles import sum_by_group

CHUNK = 8  # single rows taken at once


def forward(y, x, factors: Factors, rows: Rows) -> tuple[Float[Array, "T F"], Array]:
    """`y` plus each row's delta, the bits of `y` where a row has no slot; and the inner products for `backward`.

    The sum is float32 and rounded to y's dtype.
    """
    found = []
    for r, g, m in rows.parts():
        here, count = rows.owner[g], rows.owner[g].shape[0]
        if m > 1 or count <= CHUNK or count % CHUNK:
            found.append(one_part(x[r], here, m, factors))
            continue
        # A few rows' factors at a time: all of them are read, written and read again past the cache.
        parts = x[r].reshape(-1, CHUNK, x.shape[-1]), here.reshape(-1, CHUNK)
        z, delta = jax.lax.map(lambda part: one_part(part[0], part[1], 1, factors), parts)
        found.append((z.reshape(count, -1), delta.reshape(count, -1)))
    z, delta = map(jnp.concatenate, zip(*found, strict=True))
    return added(y, delta, rows), z


def added(y, delta, rows: Rows):
    """`y` plus each row's float32 delta, rounded to y's dtype; the bits of `y` where a row has no slot."""
    return jnp.where((rows.of_each() >= 0)[:, None], (y.astype(jnp.float32) + delta).astype(y.dtype), y)


def one_part(x, slots, m, factors: Factors):
    """The shrunk rows of groups of `m` rows, and their deltas: float32, any value where a row has no slot."""
    z = dot("gmd,grd->gmr", grouped(x, m), of_slots(factors.a, slots, factors.offset, x.dtype))
    z = ungrouped(scaled(z, slots, factors), m).astype(x.dtype)
    return z, ungrouped(dot("gmr,grf->gmf", grouped(z, m), of_slots(factors.b, slots, factors.offset, x.dtype)), m)


def shrink(x, factors: Factors, rows: Rows) -> Float[Array, "T R"]:
    """`scales[s] x a[s]^T` for each row, in x's dtype; zeros where a row has no slot.

    The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    """
    found = []
    for r, g, m in rows.parts():
        slots = rows.owner[g]
        z = dot("gmd,grd->gmr", grouped(x[r], m), of_slots(factors.a, slots, factors.offset, x.dtype))
        found.append(ungrouped(scaled(z, slots, factors), m))
    return jnp.concatenate(found).astype(x.dtype)


def expand(y, z, factors: Factors, rows: Rows) -> Float[Array, "T F"]:
    """`y` plus `z b[s]` for each row, the bits of `y` where a row has no slot."""
    return added(y, products(z, factors, rows), rows)


def products(z, factors: Factors, rows: Rows):
    """`z b[s]` for each row, float32, any value where a row has no slot."""
    found = []
    for r, g, m in rows.parts():
        y = dot("gmr,grf->gmf", grouped(z[r], m), of_slots(factors.b, rows.owner[g], factors.offset, z.dtype))
        found.append(ungrouped(y, m))
    return jnp.concatenate(found)


def live_rows(rows: Rows):
    return (rows.of_each() >= 0)[:, None]


def grouped(x, m):
    """`[G, m, D]`; one row becomes two equal ones, since a product of a single row takes other bits."""
    xt = x.reshape(-1, m, x.shape[-1])
    return jnp.broadcast_to(xt, (xt.shape[0], 2, xt.shape[2])) if m == 1 else xt


def ungrouped(x, m):
    """`[T, D]` again."""
    return x[:, :m].reshape(-1, x.shape[-1])


def of_slots(factor, slots, offset, dtype):
    """The factor of each group's slot (slot 0's where it has none; the caller leaves those rows out)."""
    return factor[offset + jnp.maximum(slots, 0)].astype(dtype)


def scaled(inner, slots, factors: Factors):
    """Inner products or their gradients by each group's scale; zeros where it has no slot.

    Chosen, not multiplied by zero: what a slot holds must not reach a row that is not its own, not even as NaN.
    """
    scale = factors.scales[jnp.maximum(slots, 0)][:, None, None]
    return jnp.where((slots >= 0)[:, None, None], inner * scale, 0.0)


def dot(equation, left, right):
    """A product accumulated in float32."""
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def backward(x, factors: Factors, rows: Rows, z, dy):
    """Gradients of x, a and b; rows without a slot have none. `z` is what `forward` gave."""
    found = []
    for r, g, m in rows.parts():
        dz, db = through_expand(z[r], factors, rows.owner[g], m, dy[r])
        found.append((*through_shrink(x[r], factors, rows.owner[g], m, dz), db))
    dx, lefts, rights = map(jnp.concatenate, zip(*found, strict=True))
    da, db = of_each_slot((lefts, rights), factors.a, factors, rows)
    return dx.astype(x.dtype), da, db.astype(factors.b.dtype)


def shrink_backward(x, factors: Factors, rows: Rows, dz):
    """Gradients of x and a from that of `shrink`."""
    found = []
    for r, g, m in rows.parts():
        inner = grouped(dz[r], m).astype(jnp.float32)
        found.append(through_shrink(x[r], factors, rows.owner[g], m, once(inner, m)))
    dx, lefts = map(jnp.concatenate, zip(*found, strict=True))
    return dx.astype(x.dtype), of_each_slot((lefts,), factors.a, factors, rows)[0]


def expand_backward(z, factors: Factors, rows: Rows, dy):
    """Gradients of z and b from that of `expand`."""
    found = []
    for r, g, m in rows.parts():
        dz, db = through_expand(z[r], factors, rows.owner[g], m, dy[r])
        found.append((ungrouped(jnp.where((rows.owner[g] >= 0)[:, None, None], dz, 0.0), m), db))
    dz, rights = map(jnp.concatenate, zip(*found, strict=True))
    return dz.astype(z.dtype), of_each_slot((rights,), factors.b, factors, rows)[0]


def once(inner, m):
    """A gradient of grouped rows, in which a doubled row counts once."""
    return inner * jnp.asarray([1, 0], inner.dtype)[None, :, None] if m == 1 else inner


def through_expand(z, factors: Factors, slots, m, dy):
    """Float32 `[G, m, R]` gradient of grouped z, any value where a group has no slot, and each group's part of db."""
    dyt = once(grouped(dy, m).astype(z.dtype), m)
    dz = dot("gmf,grf->gmr", dyt, of_slots(factors.b, slots, factors.offset, z.dtype))
    return dz, dot("gmr,gmf->grf", grouped(z, m), dyt)


def through_shrink(x, factors: Factors, slots, m, dz):
    """Float32 gradient of x and each group's part of da from the float32 gradient of grouped z."""
    dz = scaled(dz, slots, factors).astype(x.dtype)
    part = dot("gmr,grd->gmd", dz, of_slots(factors.a, slots, factors.offset, x.dtype))
    dx = jnp.where((slots >= 0)[:, None, None], part, 0.0)
    return ungrouped(dx, m), dot("gmr,gmd->grd", dz, grouped(x, m))


def of_each_slot(parts, factor, factors: Factors, rows: Rows):
    """The groups' parts summed in order for each row of the bank, in the dtype of `factor`."""
    index = jnp.where(rows.owner < 0, -1, factors.offset + rows.owner)
    return [total.astype(factor.dtype) for total in sum_by_group(parts, index, factor.shape[0])]
