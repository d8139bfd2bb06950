"""Memories of rank 8, one state or four: decodes, a prefill and its gradient."""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from kernels.delta_rule.api import EXTRA, Tokens, delta_rule
from kernels.rows import Rows

RANK = 8
STATES = {"one state": 1, "four states": 4}
STEPS = {"decode 64": (64, 0), "prefill 2048": (0, 64), "decode 64 prefill 2048": (64, 64)}  # single rows, tiles
TILE = 32


def cases() -> list[Case]:
    """Every step with both; and gradients of a prefill's."""
    found = []
    for states, heads in STATES.items():
        for step, (singles, tiles) in STEPS.items():
            arguments = _arguments(heads, singles, tiles)
            kernels = ("delta_rule_rows",) * bool(singles) + ("delta_rule_tiles",) * bool(tiles)
            found.append(Case("delta_rule", f"{states} {step}", partial(_run, singles), arguments, kernels))
        gradient, kernels = partial(_gradient, 0), ("delta_rule_tiles", "delta_rule_tiles_backward")
        found.append(Case("delta_rule", f"{states} prefill 2048 gradient", gradient, _arguments(heads, 0, 64), kernels))
    return found


def _arguments(heads: int, singles: int, tiles: int):
    rows, groups = singles + tiles * TILE, singles + tiles
    projected = jax.ShapeDtypeStruct((rows, heads, 4, RANK), jnp.float32)
    flag, follows = jax.ShapeDtypeStruct((rows,), jnp.bool_), jax.ShapeDtypeStruct((groups,), jnp.bool_)
    starts = jax.ShapeDtypeStruct((groups, heads, RANK + EXTRA, RANK), jnp.float32)
    return projected, flag, flag, flag, starts, follows, jax.ShapeDtypeStruct((groups,), jnp.int32)


def _run(singles: int, projected, gather, commit, kept, starts, follows, owner):
    return delta_rule(Tokens(projected, gather, commit, kept), starts, follows, Rows(owner, singles, TILE))


def _gradient(singles: int, projected, gather, commit, kept, starts, follows, owner):
    found, pull = jax.vjp(lambda x: _run(singles, x, gather, commit, kept, starts, follows, owner), projected)
    return found, pull(found)[0]
