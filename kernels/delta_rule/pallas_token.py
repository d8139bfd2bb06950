"""One token of a memory as the TPU's kernels compute it: arrays of two axes, in registers.

Of each head the matrix is held by columns (`S^T`), so that a product with a vector adds whole rows, in order, and gives
a row: zeros behind, of a room of a higher rank, change no bit. Differentiable within a kernel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.delta_rule.xla import EPSILON


class Head(NamedTuple):
    """A head's state: `matrix [R, R]` is S^T; sums `key`, `value` and `gate` of a message, rows `[1, R]`; `count` of
    its tokens so far, `[1, R]`, in every place.
    """

    matrix: jax.Array
    key: jax.Array
    value: jax.Array
    gate: jax.Array
    count: jax.Array


class Token(NamedTuple):
    """A token's rows `[1, R]` for one head, before tanh and sigmoid."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    gate: jax.Array


def apply(head: Head, token: Token, gather, commit) -> tuple[Head, jax.Array, jax.Array]:
    """The state after a token, what it read, and the gate that it wrote with (0: it wrote nothing), `[1, R]` each."""
    read = _product(head.matrix, _unit(token.query))
    added = [jnp.where(gather, a + b, a) for a, b in zip(head[1:4], token[1:], strict=True)]
    count = jax.lax.stop_gradient(jnp.where(gather, head.count + 1.0, head.count))
    share = 1.0 / jnp.maximum(count, 1.0)
    mean = [x * share for x in added]
    key, value, beta = _unit(mean[0]), mean[1], jax.nn.sigmoid(mean[2])
    moved = beta * (value - _product(head.matrix, key))
    new = _rows(1.0 - beta) * head.matrix + _columns(key) * _rows(moved)
    writes = count * jnp.where(commit, 1.0, 0.0) > 0
    matrix = jnp.where(_rows(count) * jnp.where(commit, 1.0, 0.0) > 0, new, head.matrix)
    after = Head(matrix, *(jnp.where(writes, 0.0, x) for x in (*added, count)))
    return after, read, jnp.where(writes, beta, 0.0)


def _rows(x):
    """The row `[1, R]` again and again: `[R, R]`."""
    return jnp.broadcast_to(x, (x.shape[1], x.shape[1]))


def _columns(x):
    """A column of the row's numbers, `[R, R]`: row j holds the jth everywhere. One term of each sum is not 0."""
    size = x.shape[1]
    own = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0) == jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    column = jnp.sum(jnp.where(own, _rows(x), 0.0), axis=1, keepdims=True)
    return jnp.broadcast_to(column, (size, size))


def _unit(x):
    turned = jnp.tanh(x)
    squares = _added(_columns(turned * turned))
    return turned * jax.lax.rsqrt(jnp.maximum(squares, EPSILON))


def _product(matrix, x):
    """`S x`, a row, from S^T and the row x."""
    return _added(matrix * _columns(x))


@jax.custom_vjp
def _added(x):
    """The sum of rows, one after another."""
    total = x[0:1]
    for i in range(1, x.shape[0]):
        total = total + x[i : i + 1]
    return total


_added.defvjp(lambda x: (_added(x), None), lambda _, d: (_rows(d),))
