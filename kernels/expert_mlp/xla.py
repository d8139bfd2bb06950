"""Portable gated expert layer for runs of rows: one loop over windows of one (expert, slot) each, all three projections
with their adapters in its body, so that what a window computes stays in the processor's cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernels.factors import Factors
from kernels.fresh import fresh
from kernels.windows import Windows

SITES = ("gate", "up", "down")


class Matrices(NamedTuple):
    """The experts' matrices, `[W, in, out]`; expert e of this layer is `offset + e`."""

    gate: Array
    up: Array
    down: Array
    offset: Array


class Sites(NamedTuple):
    """Something of each projection, None where it has none: adapters' `Factors`, rows of the buffer, or gradients."""

    gate: Any = None
    up: Any = None
    down: Any = None


def dot(x, w, turned=False):
    """`x w`, or `x w^T`, accumulated in float32."""
    return jax.lax.dot_general(x, w, (((1,), (1 if turned else 0,)), ((), ())), preferred_element_type=jnp.float32)


def outer(left, right):
    """`left^T right`, float32."""
    return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


class Window(NamedTuple):
    """One turn of the loop: which rows, which expert, which slot (-1: the bare base)."""

    start: Array
    own: Array
    expert: Array
    slot: Array


def turn(windows: Windows, i) -> Window:
    """Window `i`; its rows past its own pair's are masked."""
    own = (jnp.arange(windows.size, dtype=jnp.int32) < windows.length[i])[:, None]
    return Window(windows.start[i], own, windows.group[i], windows.subgroup[i] - 1)


def read(buffer, at: Window):
    """A window's own rows; zeros past them. Chosen, so that not even a NaN of another's comes through."""
    rows = jax.lax.dynamic_slice_in_dim(buffer, at.start, at.own.shape[0])
    return jnp.where(at.own, rows, 0)


def write(buffer, at: Window, rows):
    """Store a window; rows past its own are written again by the windows that own them."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), at.start, 0)


def pick(factor, factors: Factors, at: Window, dtype):
    """A window's slice of a factor `[G, E, R, .]` and the index it has in the folded `[G * E, R, .]`."""
    index = (factors.offset + jnp.maximum(at.slot, 0)) * factor.shape[1] + at.expert
    folded = factor.reshape(-1, *factor.shape[2:])
    return jax.lax.dynamic_index_in_dim(folded, index, keepdims=False).astype(dtype), index


def project(x, z, w, factors: Factors | None, at: Window):
    """One projection of a window with its adapter, in x's type, and its shrunk rows `z [m, R]`, given or made.

    The scale goes between the two products: beside the sum that follows it could be contracted into that sum.
    """
    y = dot(x, w)
    if factors is None:
        return y.astype(x.dtype), None
    if factors.a is not None:
        z = dot(x, pick(factors.a, factors, at, x.dtype)[0], turned=True) * factors.scales[jnp.maximum(at.slot, 0)]
        z = jnp.where(at.slot < 0, 0.0, z).astype(x.dtype)
    if factors.b is not None:
        y = jnp.where(at.slot >= 0, y + dot(z, pick(factors.b, factors, at, x.dtype)[0]), y)
    return y.astype(x.dtype), z


def gated(gate, up):
    return jax.nn.silu(gate) * up


def forward(x, shrunk: Sites, matrices: Matrices, adapters: Sites, windows: Windows):
    """`down(silu(gate x) * up x)` of every row of the buffer, in x's type, and what the backward pass needs."""
    rows, wide = x.shape[0], matrices.gate.shape[-1]

    def room(width, like):
        return fresh((rows, width), like.astype(x.dtype))

    def one(i, carry):
        y, kept = carry
        at = turn(windows, i)
        mine = read(x, at)
        w = [m[matrices.offset + at.expert] for m in matrices[:3]]
        z = [None if given is None else read(given, at) for given in shrunk]
        gate, zg = project(mine, z[0], w[0], adapters.gate, at)
        up, zu = project(mine, z[1], w[1], adapters.up, at)
        down, zd = project(gated(gate, up), z[2], w[2], adapters.down, at)
        new = {"gate": gate, "up": up, "zgate": zg, "zup": zu, "zdown": zd}
        return write(y, at, down), {name: write(kept[name], at, new[name]) for name in kept}

    kept = {"gate": room(wide, matrices.gate[0, 0]), "up": room(wide, matrices.up[0, 0])}
    own = {site: f.a for site, f in zip(SITES, adapters, strict=True) if f is not None and f.a is not None}
    kept |= {f"z{site}": room(a.shape[-2], a[0, 0, 0]) for site, a in own.items()}
    y, kept = jax.lax.fori_loop(0, windows.live, one, (room(x.shape[1], matrices.down[0, 0]), kept))
    return y, kept | {f"z{site}": z for site, z in zip(SITES, shrunk, strict=True) if z is not None}


def pull(cotangents, x, z, w, factors: Factors | None, at: Window, sums):
    """Through one projection: float32 gradients of its input and of its shrunk rows, and those of its factors added to
    `sums`. `cotangents` are those of its output and, where it has no `b`, of its shrunk rows.
    """
    dy, dz = cotangents
    dx = dot(dy, w, turned=True)
    if factors is None:
        return dx, None, sums
    adapted = at.slot >= 0
    total_a, total_b = sums
    if factors.b is not None:
        b, index = pick(factors.b, factors, at, x.dtype)
        dz = jnp.where(adapted, dot(dy, b, turned=True), 0.0)
        total_b = add(total_b, jnp.where(adapted, outer(z, dy), 0.0), index)
    if factors.a is not None:
        a, index = pick(factors.a, factors, at, x.dtype)
        dz = dz.astype(jnp.float32) * factors.scales[jnp.maximum(at.slot, 0)]
        dz = jnp.where(adapted, dz, 0.0).astype(x.dtype)
        dx = jnp.where(adapted, dx + dot(dz, a), dx)
        # Chosen, not a product with zeros: the bare base's rows are no slot's, not even where they are no numbers.
        total_a = add(total_a, jnp.where(adapted, outer(dz, x), 0.0), index)
    return dx, dz, (total_a, total_b)


def add(total, part, index):
    """Add to one entry of a table, in place."""
    old = jax.lax.dynamic_index_in_dim(total, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, old + part, index, 0)


def backward(x, matrices: Matrices, adapters: Sites, windows: Windows, kept, cotangents):
    """Gradients of x, of the rows that came shrunk, and of the adapters' factors (a `Factors` for each that has one)."""
    dy, dzdown = cotangents

    def one(i, carry):
        dx, given, sums = carry
        at = turn(windows, i)
        w = [m[matrices.offset + at.expert] for m in matrices[:3]]
        rows, z = read(x, at), [read(kept[f"z{site}"], at) if f"z{site}" in kept else None for site in SITES]
        h, down = jax.vjp(gated, read(kept["gate"], at), read(kept["up"], at))
        back = read(dy, at), None if dzdown is None else read(dzdown, at)
        dh, _, total = pull(back, h, z[2], w[2], adapters.down, at, sums.down)
        dgate, dup = down(dh.astype(x.dtype))
        d_one, z_one, total_one = pull((dgate, None), rows, z[0], w[0], adapters.gate, at, sums.gate)
        d_two, z_two, total_two = pull((dup, None), rows, z[1], w[1], adapters.up, at, sums.up)
        found = [None if g is None else write(g, at, d) for g, d in zip(given, (z_one, z_two, None), strict=True)]
        return write(dx, at, d_one + d_two), Sites(*found), Sites(total_one, total_two, total)

    def table(factor):
        return None if factor is None else fresh(folded(factor), jnp.zeros((), jnp.float32) + factor[0, 0, 0, 0])

    def folded(factor):
        return (factor.shape[0] * factor.shape[1], *factor.shape[2:])

    def apart(f: Factors | None):
        return f is not None and f.a is None

    start = Sites(*(None if f is None else (table(f.a), table(f.b)) for f in adapters))
    given = Sites(*(jnp.zeros_like(kept[f"z{site}"]) if apart(f) else None for site, f in zip(SITES, adapters)))
    dx, given, sums = jax.lax.fori_loop(0, windows.live, one, (jnp.zeros_like(x), given, start))

    def shaped(f, pair):
        whole = [None if g is None else g.reshape(p.shape).astype(p.dtype) for g, p in zip(pair, f[:2], strict=True)]
        return Factors(whole[0], whole[1], None, None)  # pyright: ignore[reportArgumentType]

    return dx, given, Sites(*(None if f is None else shaped(f, pair) for f, pair in zip(adapters, sums, strict=True)))
