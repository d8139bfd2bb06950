"""Portable gated expert layer for runs of rows, in loops over windows (`kernels.windows`) of a buffer without gaps.

The base's products run over windows of one expert, full but for each expert's last; the adapters' small ones over
windows of one (expert, slot), before and after. What the latter add to a base product waits in a float32 buffer, -0.0
where a row has no slot: adding that changes no bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernels.factors import Factors
from kernels.fresh import fresh
from kernels.windows import Cuts, Windows

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
    """One turn of a loop: where its rows begin, which are its own, of which expert and slot (-1: the bare base)."""

    start: Array
    own: Array
    expert: Array
    slot: Array


def over(cuts: Cuts, size: int, body, buffers):
    """Runs `body(window, buffers)` for every live window; buffers that it does not return stay as they are."""

    def one(i, buffers):
        own = (jnp.arange(size, dtype=jnp.int32) < cuts.length[i])[:, None]
        return buffers | body(Window(cuts.start[i], own, cuts.group[i], cuts.subgroup[i] - 1), buffers)

    return jax.lax.fori_loop(0, cuts.live, one, buffers)


def part(buffer, at: Window):
    return jax.lax.dynamic_slice_in_dim(buffer, at.start, at.own.shape[0])


def read(buffer, at: Window):
    """A window's own rows; zeros past them. Chosen, so that not even a NaN of another's comes through."""
    return jnp.where(at.own, part(buffer, at), 0)


def write(buffer, at: Window, rows):
    """Store a window; rows past its own are written again by the windows that own them."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), at.start, 0)


def increase(buffer, at: Window, rows):
    """Add to a window's own rows."""
    old = part(buffer, at)
    return jax.lax.dynamic_update_slice_in_dim(buffer, jnp.where(at.own, old + rows, old), at.start, 0)


def unless_bare(at: Window, rows):
    """What an adapter adds to a window's rows: -0.0 for the bare base, which changes no bit of what it is added to."""
    return jnp.where(at.slot < 0, -0.0, rows)


class Picked(NamedTuple):
    """A window's slices of the factors, in the rows' type, and their place in the folded `[G * E, R, .]`."""

    a: Array | None
    b: Array | None
    scale: Array
    index: Array


def pick(factors: Factors, at: Window, dtype) -> Picked:
    slot = jnp.maximum(at.slot, 0)
    experts = next(f.shape[1] for f in factors[:2] if f is not None)
    index = (factors.offset + slot) * experts + at.expert

    def of(factor):
        if factor is None:
            return None
        folded = factor.reshape(-1, *factor.shape[2:])
        return jax.lax.dynamic_index_in_dim(folded, index, keepdims=False).astype(dtype)

    return Picked(of(factors.a), of(factors.b), factors.scales[slot], index)


def shrunk_rows(x, mine: Picked, at: Window):
    """`scale x a^T`. Scaled here: beside the sum that follows the expansion it could be contracted into that sum."""
    return jnp.where(at.slot < 0, 0.0, dot(x, mine.a, turned=True) * mine.scale).astype(x.dtype)


def gated(gate, up):
    return jax.nn.silu(gate) * up


def forward(x, shrunk: Sites, matrices: Matrices, adapters: Sites, windows: Windows):
    """`down(silu(gate x) * up x)` of every row of the buffer, in x's type, and what the backward pass needs.

    `gate` and `up` expand inside and `down` shrinks inside, whatever the experts share.
    """
    inward = {site: f for site, f in zip(SITES[:2], adapters) if f is not None}
    w, pairs, groups = matrices._asdict(), windows.pairs, windows.groups
    wide = matrices.gate.shape[-1]

    def room(width, like, dtype=x.dtype):
        return fresh((x.shape[0], width), like.reshape(-1)[0].astype(dtype))

    def before(at, buffers):
        new = {}
        for site, factors in inward.items():
            mine = pick(factors, at, x.dtype)
            z = read(getattr(shrunk, site), at) if mine.a is None else shrunk_rows(read(x, at), mine, at)
            new[f"+{site}"] = write(buffers[f"+{site}"], at, unless_bare(at, dot(z, mine.b)))
            if mine.a is not None:
                new[f"z{site}"] = write(buffers[f"z{site}"], at, z)
        return new

    def experts(at, buffers):
        rows, expert = read(x, at), matrices.offset + at.expert
        made = {site: dot(rows, w[site][expert]) for site in SITES[:2]}
        made |= {site: made[site] + part(buffers[f"+{site}"], at) for site in inward}
        gate, up = (made[site].astype(x.dtype) for site in SITES[:2])
        h = gated(gate, up)
        made = {"gate": gate, "up": up, "h": h, "y": dot(h, w["down"][expert])}
        return {name: write(buffers[name], at, rows) for name, rows in made.items()}

    def after(at, buffers):
        mine = pick(adapters.down, at, x.dtype)
        z = shrunk_rows(read(buffers["h"], at), mine, at)
        new = {"zdown": write(buffers["zdown"], at, z)}
        if mine.b is not None:
            new["y"] = increase(buffers["y"], at, unless_bare(at, dot(z, mine.b)))
        return new

    buffers = {f"+{site}": room(wide, f.b, jnp.float32) for site, f in inward.items()}
    buffers |= {f"z{s}": room(f.a.shape[-2], f.a) for s, f in zip(SITES, adapters) if f is not None and f.a is not None}
    if inward:
        buffers = over(pairs, windows.size, before, buffers)
    buffers |= {"gate": room(wide, w["gate"]), "up": room(wide, w["up"]), "h": room(wide, w["down"])}
    buffers |= {"y": room(x.shape[1], w["down"], jnp.float32)}
    buffers = over(groups, windows.size, experts, buffers)
    if adapters.down is not None:
        buffers = over(pairs, windows.size, after, buffers)
    kept = {name: rows for name, rows in buffers.items() if name != "y" and not name.startswith("+")}
    kept |= {f"z{site}": z for site, z in zip(SITES, shrunk) if z is not None}
    return buffers["y"].astype(x.dtype), kept


def add(total, part, at: Window, mine: Picked):
    """Add to one entry of a table, in place. Chosen, not a product with zeros: the bare base's rows are no slot's."""
    old = jax.lax.dynamic_index_in_dim(total, mine.index, keepdims=False)
    new = jnp.where(at.slot < 0, old, old + part)
    return jax.lax.dynamic_update_index_in_dim(total, new, mine.index, 0)


class Rows(NamedTuple):
    """What an adapter saw of a window's rows, and what comes back to it: `dz` only where the experts share its `b`."""

    x: Array
    z: Array
    dy: Array
    dz: Array | None = None


def pull(site: str, rows: Rows, factors: Factors, at: Window, tables):
    """Back through one adapter: its factors' tables with this window added, the gradient of its scaled shrunk rows, and
    what it adds to that of its input (None where the experts share its `a`).
    """
    mine, new, dz, dx = pick(factors, at, rows.x.dtype), {}, rows.dz, None
    if mine.b is not None:
        dz = jnp.where(at.slot < 0, 0.0, dot(rows.dy, mine.b, turned=True))
        new["b" + site] = add(tables["b" + site], outer(rows.z, rows.dy), at, mine)
    if mine.a is not None:
        inner = jnp.where(at.slot < 0, 0.0, dz.astype(jnp.float32) * mine.scale).astype(rows.x.dtype)
        dx = unless_bare(at, dot(inner, mine.a))
        new["a" + site] = add(tables["a" + site], outer(inner, rows.x), at, mine)
    return new, dz, dx


def backward(x, matrices: Matrices, adapters: Sites, windows: Windows, kept, cotangents):
    """Gradients of x, of the rows that came shrunk, and of the factors (a `Factors` for each that has one)."""
    dy, dzdown = cotangents
    own = {site: f for site, f in zip(SITES, adapters) if f is not None}
    inward = [site for site in own if site != "down"]

    def before(at, buffers):
        back = None if dzdown is None else read(dzdown, at)
        rows = Rows(read(kept["h"], at), read(kept["zdown"], at), read(dy, at), back)
        new, _, dh = pull("down", rows, own["down"], at, buffers)
        return new | {"h": write(buffers["h"], at, dh)}

    def experts(at, buffers):
        gate, up, down = (m[matrices.offset + at.expert] for m in matrices[:3])
        dh = dot(read(dy, at), down, turned=True)
        if "down" in own:
            dh = dh + part(buffers["h"], at)
        _, back = jax.vjp(gated, read(kept["gate"], at), read(kept["up"], at))
        dgate, dup = back(dh.astype(x.dtype))
        made = {"gate": dgate, "up": dup, "x": dot(dgate, gate, turned=True) + dot(dup, up, turned=True)}
        return {name: write(buffers[name], at, rows) for name, rows in made.items()}

    def after(at, buffers):
        new = {"x": buffers["x"]}
        for site in inward:
            rows = Rows(read(x, at), read(kept["z" + site], at), read(buffers[site], at))
            tables, dz, dx = pull(site, rows, own[site], at, buffers)
            new |= tables
            new |= {"z" + site: write(buffers["z" + site], at, dz)} if dx is None else {"x": increase(new["x"], at, dx)}
        return new

    def room(like, dtype):
        return fresh(like.shape, like.reshape(-1)[0].astype(dtype))

    buffers = {}
    if "down" in own:
        start = tables("down", own["down"]) | {"h": room(kept["h"], jnp.float32)}
        buffers = over(windows.pairs, windows.size, before, start)
    buffers |= {"gate": room(kept["gate"], x.dtype), "up": room(kept["up"], x.dtype), "x": room(x, jnp.float32)}
    buffers = over(windows.groups, windows.size, experts, buffers)
    if inward:
        for site in inward:
            apart = own[site].a is None
            buffers |= tables(site, own[site]) | ({"z" + site: room(kept["z" + site], x.dtype)} if apart else {})
        buffers = over(windows.pairs, windows.size, after, buffers)
    shrunk = Sites(*(buffers.get("z" + site) for site in SITES))
    return buffers["x"].astype(x.dtype), shrunk, Sites(*(gradients(s, f, buffers) for s, f in zip(SITES, adapters)))


def tables(site: str, factors: Factors):
    """Room for the gradients of a pair of factors, all slots and experts in one row."""

    def room(factor):
        return fresh((factor.shape[0] * factor.shape[1], *factor.shape[2:]), factor.reshape(-1)[0].astype(jnp.float32))

    return {name + site: room(f) for name, f in zip("ab", factors) if f is not None}


def gradients(site: str, factors: Factors | None, buffers):
    """The gradients of a pair of factors, from their tables."""
    if factors is None:
        return None
    pair = (f if f is None else buffers[n + site].reshape(f.shape).astype(f.dtype) for n, f in zip("ab", factors[:2]))
    return Factors(*pair, None, None)  # pyright: ignore[reportArgumentType]
