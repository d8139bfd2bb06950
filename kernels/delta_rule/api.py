"""A small memory for each sequence, read by every token and written by the delta rule (delta-mem, 2605.12357).

Per head a matrix `S [R, R]`. A token reads `S q` before it writes; what it writes replaces what its key named:
`S <- (1 - beta) S + beta (v - S k) k^T`, row by row of S its own beta. What is written is the mean of a message, whose
tokens are gathered until one commits; a message may be one token.

The state goes from token to token by sums in one order and products of single numbers: the bits of a token do not
depend on how tokens are cut into steps, nor on what else is in one.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from kernels.delta_rule import pallas_tpu, xla
from kernels.implementation import use_pallas
from kernels.rows import Rows

EXTRA = xla.EXTRA


class Tokens(NamedTuple):
    """What tokens do. `projected`: query, key, value and gate of each, before tanh and sigmoid; whether a token is
    `gather`ed into its message, whether it `commit`s the message, whether the state after it is to be `kept`: of one
    token of a group at most.
    """

    projected: Float[Array, "T H 4 R"]
    gather: Bool[Array, "T"]
    commit: Bool[Array, "T"]
    kept: Bool[Array, "T"]


class Found(NamedTuple):
    """What each token `read`s, and the mean of the `gates` it wrote with (0 where it wrote nothing); the state after
    the token of each group that is to be `kept` (any where there is none), and after its `last`.
    """

    read: Float[Array, "T H R"]
    gates: Float[Array, "T"]
    kept: Float[Array, "G H S R"]
    last: Float[Array, "G H S R"]


def delta_rule(tokens: Tokens, starts: Float[Array, "G H S R"], follows: Bool[Array, "G"], rows: Rows) -> Found:
    """Read and write in the order of rows: every group of `rows` (a single row, or a tile) begins at its own of
    `starts` (`S = R + 4`), or `follows` the tile before. Float32. Differentiable in `projected` and `starts`; of a
    tile, the backward pass keeps the state that it began with, and computes the others again.
    """
    form = pallas_tpu if use_pallas("delta_rule", pallas_tpu.unsupported(tokens.projected, rows)) else xla
    return Found(*form.scan(tokens.projected, (tokens.gather, tokens.commit, tokens.kept), starts, follows, rows))


def close(held: Float[Array, "L H S R"]) -> Float[Array, "L H R R"]:
    """The matrices of states, of which a message that was begun is written as it is."""
    return xla.close(held)
