"""The TPU's form of the delta rule: a grid over groups of rows, in order, the state in registers from token to token.

Single rows are taken eight at a time, each with its own state; a tile begins with its own or with that of the tile
before, which stays in the core. The backward kernel goes through the groups from the end: it computes a group's states
again, then takes its tokens back one by one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.delta_rule.pallas_token import Head, Token, apply
from kernels.delta_rule.xla import EXTRA, added
from kernels.lora_matmul.pallas_blocks import SUBLANES, Plan, call
from kernels.rows import Rows

GATHER, COMMIT, KEEP = 1, 2, 4


@dataclass(frozen=True)
class Form:
    """`groups` of `tile` rows, `heads` of `rank`. `each`: every row has a state of its own."""

    groups: int
    tile: int
    heads: int
    rank: int
    each: bool

    @property
    def name(self) -> str:
        return f"delta_rule_{'rows' if self.each else 'tiles'}"

    @property
    def states(self) -> int:
        """States that a group begins with."""
        return self.tile if self.each else 1

    @property
    def steps(self) -> int:
        """Turns of a group."""
        return 1

    def state(self, *before: int):
        """Room for states in the core."""
        return pltpu.VMEM((*before, self.heads, self.rank + EXTRA, self.rank), jnp.float32)

    def rows(self, kinds: int, place) -> pl.BlockSpec:
        """A group's block of `[T, heads * kinds, R]`."""
        return pl.BlockSpec((self.tile, self.heads * kinds, self.rank), lambda g, *_: (place(g), 0, 0))

    def held(self, place) -> pl.BlockSpec:
        """A group's block of `[G, heads, R + 4, R]`."""
        return pl.BlockSpec((self.states, self.heads, self.rank + EXTRA, self.rank), lambda g, *_: (place(g), 0, 0, 0))


def unsupported(projected, rows: Rows) -> str | None:
    """Why these kernels cannot take these shapes, or None."""
    if rows.tiles and rows.tile % SUBLANES:
        return f"tiles of {rows.tile} rows (a multiple of {SUBLANES} is needed)"
    if projected.shape[-1] % SUBLANES:
        return f"rank {projected.shape[-1]} (a multiple of {SUBLANES} is needed)"
    return None


def scan(projected, flags, starts, follows, rows: Rows):
    """Fields of `kernels.delta_rule.api.Found`."""
    found = []
    _, heads, _, rank = projected.shape
    gather, commit, keep = flags
    bits = jnp.where(gather, GATHER, 0) + jnp.where(commit, COMMIT, 0) + jnp.where(keep, KEEP, 0)
    for r, g, m in rows.parts():
        each, count = m == 1, g.stop - g.start
        behind = -count % SUBLANES if each else 0
        given = projected[r].reshape(-1, heads * 4, rank), bits[r], _turned(starts[g]), follows[g].astype(jnp.int32)
        given = [jnp.pad(x, [(0, behind)] + [(0, 0)] * (x.ndim - 1)) for x in given]
        form = Form((count + behind) // SUBLANES if each else count, SUBLANES if each else m, heads, rank, each)
        out, kept, last = cast(Any, _scan(form, *given))
        out = out[: r.stop - r.start].reshape(-1, heads, 2, rank)
        gates = added(out[:, :, 1].reshape(out.shape[0], -1).T) * (1.0 / (heads * rank))
        found.append((out[:, :, 0], gates, _turned(kept)[:count], _turned(last)[:count]))
    return [jnp.concatenate(parts) for parts in zip(*found, strict=True)]


def _turned(held):
    """The matrices of states transposed."""
    rank = held.shape[-1]
    return jnp.concatenate([jnp.swapaxes(held[:, :, :rank], -1, -2), held[:, :, rank:]], axis=2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(form: Form, projected, bits, starts, follows):
    def here(g):
        return g

    held = jax.ShapeDtypeStruct(starts.shape, jnp.float32), form.held(here)
    out = jax.ShapeDtypeStruct((projected.shape[0], form.heads * 2, form.rank), jnp.float32), form.rows(2, here)
    found = _call(
        form,
        form.name,
        _forward,
        prefetched=(bits, follows),
        operands={"projected": (projected, form.rows(4, here)), "starts": (starts, form.held(here))},
        results={"out": out, "kept": held, "last": held},
        scratch={"carried": form.state()},
    )
    return found["out"], found["kept"], found["last"]


def _scan_forward(form, projected, bits, starts, follows):
    found = cast(Any, _scan(form, projected, bits, starts, follows))
    return found, (projected, bits, starts, follows, found[2])


def _scan_backward(form, residuals, cotangents):
    projected, bits, starts, follows, last = residuals
    d_out, d_kept, d_last = cotangents

    def back(g):
        return form.groups - 1 - g

    entry = starts
    if not form.each:
        before = jnp.concatenate([jnp.zeros_like(last[:1]), last[:-1]])
        entry = jnp.where(follows[:, None, None, None] > 0, before, starts)
    found = _call(
        form,
        f"{form.name}_backward",
        _backward,
        prefetched=(bits, follows),
        operands={
            "projected": (projected, form.rows(4, back)),
            "entry": (entry, form.held(back)),
            "d_out": (d_out, form.rows(2, back)),
            "d_kept": (d_kept, form.held(back)),
            "d_last": (d_last, form.held(back)),
        },
        results={
            "d_projected": (jax.ShapeDtypeStruct(projected.shape, jnp.float32), form.rows(4, back)),
            "d_starts": (jax.ShapeDtypeStruct(starts.shape, jnp.float32), form.held(back)),
        },
        scratch={"carried": form.state(), "states": form.state(form.tile)},
    )
    return found["d_projected"], None, found["d_starts"], None


_scan.defvjp(_scan_forward, _scan_backward)


def _call(form: Form, name: str, body, **given):
    """The results of a kernel at each group, in order."""
    plan = Plan(**given, updated={})
    tokens = form.groups * form.tile * form.heads
    moved = sum(array.size * array.dtype.itemsize for array, _ in (*plan.operands.values(), *plan.results.values()))
    flops, more = 8 * tokens * form.rank**2, 4 * tokens * form.rank
    return call(form, name, body, plan, pl.CostEstimate(flops=flops, transcendentals=more, bytes_accessed=moved))


def _heads(form: Form, ref, *at) -> list[Head]:
    """The state in `ref[at]`, `[heads, R + 4, R]`."""
    found = []
    for h in range(form.heads):
        key, value, gate, count = (ref[*at, h, form.rank + i : form.rank + i + 1, :] for i in range(EXTRA))
        count = jnp.broadcast_to(count[:, :1], count.shape)
        found.append(Head(ref[*at, h, : form.rank, :], key, value, gate, count))
    return found


def _hold(form: Form, heads: list[Head], ref, *at) -> None:
    for h, head in enumerate(heads):
        ref[*at, h, : form.rank, :] = head.matrix
        first = jax.lax.broadcasted_iota(jnp.int32, head.count.shape, 1) == 0
        for i, row in enumerate((*head[1:4], jnp.where(first, head.count, 0.0))):
            ref[*at, h, form.rank + i : form.rank + i + 1, :] = row


def _tokens(form: Form, ref, i) -> list[Token]:
    return [Token(*(ref[i, 4 * h + k : 4 * h + k + 1, :] for k in range(4))) for h in range(form.heads)]


def _step(heads, tokens, bits):
    """States after a token, what it read and its gates, head by head."""
    gather, commit = (bits & GATHER) > 0, (bits & COMMIT) > 0
    found = [apply(head, token, gather, commit) for head, token in zip(heads, tokens, strict=True)]
    return [one[0] for one in found], [one[1:] for one in found]


def _write(form: Form, ref, i, heads, bits):
    """A token's `out`; the states after it."""
    heads, told = _step(heads, _tokens(form, ref["projected"], i), bits)
    for h, rows in enumerate(told):
        for k, row in enumerate(rows):
            ref["out"][i, 2 * h + k : 2 * h + k + 1, :] = row
    return heads


def _forward(form: Form, ref, bits, follows):
    g = pl.program_id(0)
    carried, kept, last = ref["carried"], ref["kept"], ref["last"]

    @pl.when(g == 0)
    def _empty():
        carried[...] = jnp.zeros(carried.shape, jnp.float32)

    if form.each:

        @pl.loop(0, form.tile)
        def _row(i):
            heads = _write(form, ref, i, _heads(form, ref["starts"], i), bits[g * form.tile + i])
            _hold(form, heads, kept, i)
            _hold(form, heads, last, i)

        return

    @pl.when(follows[g] == 0)
    def _begin():
        carried[...] = ref["starts"][0]

    kept[0] = carried[...]

    def token(i, heads):
        flags = bits[g * form.tile + i]
        heads = _write(form, ref, i, heads, flags)
        pl.when((flags & KEEP) > 0)(lambda: _hold(form, heads, kept, 0))
        return heads

    _hold(form, jax.lax.fori_loop(0, form.tile, token, _heads(form, carried)), carried)
    last[0] = carried[...]


def _pull(form: Form, ref, i, bits, heads, d_heads):
    """Cotangents of the states before a token, from those after it; and its own `d_projected`."""
    d_told = [tuple(ref["d_out"][i, 2 * h + k : 2 * h + k + 1, :] for k in range(2)) for h in range(form.heads)]
    tokens = _tokens(form, ref["projected"], i)
    _, pull = jax.vjp(lambda heads, tokens: _step(heads, tokens, bits), heads, tokens)
    d_heads, d_tokens = pull((d_heads, d_told))
    for h, token in enumerate(d_tokens):
        for k, row in enumerate(token):
            ref["d_projected"][i, 4 * h + k : 4 * h + k + 1, :] = row
    return d_heads


def _backward(form: Form, ref, bits, follows):
    g = form.groups - 1 - pl.program_id(0)
    carried, entry, d_kept, d_last = (ref[name] for name in ("carried", "entry", "d_kept", "d_last"))

    @pl.when(pl.program_id(0) == 0)
    def _empty():
        carried[...] = jnp.zeros(carried.shape, jnp.float32)

    if form.each:

        @pl.loop(0, form.tile)
        def _row(i):
            d_heads = jax.tree.map(jnp.add, _heads(form, d_kept, i), _heads(form, d_last, i))
            d_heads = _pull(form, ref, i, bits[g * form.tile + i], _heads(form, entry, i), d_heads)
            _hold(form, d_heads, ref["d_starts"], i)

        return

    def again(i, heads):
        _hold(form, heads, ref["states"], i)
        return _step(heads, _tokens(form, ref["projected"], i), bits[g * form.tile + i])[0]

    jax.lax.fori_loop(0, form.tile, again, _heads(form, entry, 0))

    def token(n, d_heads):
        i = form.tile - 1 - n
        flags = bits[g * form.tile + i]
        keep = jnp.where((flags & KEEP) > 0, 1.0, 0.0)
        d_heads = jax.tree.map(lambda d, own: d + keep * own, d_heads, _heads(form, d_kept, 0))
        return _pull(form, ref, i, flags, _heads(form, ref["states"], i), d_heads)

    d_heads = jax.tree.map(jnp.add, _heads(form, carried), _heads(form, d_last, 0))
    _hold(form, jax.lax.fori_loop(0, form.tile, token, d_heads), carried)
    ref["d_starts"][0] = jnp.where(follows[g] > 0, 0.0, carried[...])
    carried[...] = jnp.where(follows[g] > 0, carried[...], 0.0)
