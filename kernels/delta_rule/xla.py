"""Portable delta rule: single rows side by side, tiles one after another, token by token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.rows import Rows

EXTRA = 4  # rows of a head's state beside S: sums of keys, values and gates of a message, and its tokens so far
EPSILON = 1e-12  # squared: a shorter vector than 1e-6 keeps its length, as PyTorch's normalize has it


def scan(projected, flags, starts, follows, rows: Rows):
    """Fields of `kernels.delta_rule.api.Found`."""
    found = []
    for r, g, m in rows.parts():
        here = projected[r], *(flag[r] for flag in flags)
        if m == 1:
            state, read, gates = jax.vmap(_token)(starts[g], *here[:3])
            found.append((read, gates, state, state))
            continue
        grouped = jax.tree.map(lambda x, m=m: x.reshape(-1, m, *x.shape[1:]), here)
        _, (read, gates, kept, last) = jax.lax.scan(
            jax.checkpoint(_tile), jnp.zeros_like(starts[0]), (grouped, starts[g], follows[g])
        )
        found.append((read.reshape(-1, *read.shape[2:]), gates.reshape(-1), kept, last))
    return [jnp.concatenate(parts) for parts in zip(*found, strict=True)]


def _tile(before, xs):
    """The tokens of a tile, in order."""
    (projected, gather, commit, keep), start, follows = xs
    state = jnp.where(follows, before, start)

    def one(carry, xs):
        *token, keep = xs
        state, kept = carry
        state, read, gates = _token(state, *token)
        return (state, jnp.where(keep, state, kept)), (read, gates)

    (last, kept), (read, gates) = jax.lax.scan(one, (state, state), (projected, gather, commit, keep))
    return last, (read, gates, kept, last)


def _token(held: Float[Array, "H S R"], projected: Float[Array, "H 4 R"], gather, commit):
    """State after a token, what it read `[H, R]`, and the mean gate it wrote with."""
    width = projected.shape[-1]
    state, sums, count = held[:, :width], held[:, width : width + 3], held[:, width + 3, :1]
    read = _times(state, _unit(projected[:, 0]))
    sums = jnp.where(gather, sums + projected[:, 1:], sums)
    count = jax.lax.stop_gradient(jnp.where(gather, count + 1, count))
    # A reciprocal that XLA cannot join with the product: see `pefx.optim`.
    mean = sums * jax.lax.optimization_barrier(1.0 / jnp.maximum(count, 1.0))[:, None]
    writes = commit & (count[0, 0] > 0)
    key, value, beta = _unit(mean[:, 0]), mean[:, 1], jax.nn.sigmoid(mean[:, 2])
    new = (1.0 - beta)[..., None] * state + (beta * (value - _times(state, key)))[..., None] * key[:, None]
    state = jnp.where(writes, new, state)
    sums, count = jnp.where(writes, 0.0, sums), jnp.where(writes, 0.0, count)
    rest = jnp.pad(count[:, None], ((0, 0), (0, 0), (0, width - 1)))
    gates = jnp.where(writes, added(beta.ravel()) * (1.0 / beta.size), 0.0)
    return jnp.concatenate([state, sums, rest], axis=1), read, gates


def close(held):
    """See `kernels.delta_rule.api`."""
    nothing = jnp.zeros((held.shape[1], 4, held.shape[-1]), jnp.float32)
    state, _, _ = jax.vmap(lambda one: _token(one, nothing, jnp.asarray(False), jnp.asarray(True)))(held)
    return state[:, :, : held.shape[-1]]


def _times(state: Float[Array, "H R R"], x: Float[Array, "H R"]) -> Float[Array, "H R"]:
    """`S x`, its terms added in order."""
    return added(jnp.moveaxis(state * x[:, None], -1, 0))


def _unit(x: Float[Array, "H R"]) -> Float[Array, "H R"]:
    turned = jnp.tanh(x)
    squares = added(jnp.moveaxis(turned * turned, -1, 0))
    return turned * jax.lax.rsqrt(jnp.maximum(squares, EPSILON))[:, None]


def added(x):
    """The sum over the first axis, one after another: zeros behind change no bit."""
    total = x[0]
    for i in range(1, x.shape[0]):
        total = total + x[i]
    return total
