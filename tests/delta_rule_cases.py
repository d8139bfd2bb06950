"""Numbers for tests of the delta rule, and the rule over a chain of tiles, single rows, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels.delta_rule.api import EXTRA, Tokens, delta_rule
from kernels.rows import Rows
from pefx.compiler import jit

STATES, RANK, COUNT, TILE = 2, 8, 64, 16
GROUPS = COUNT // TILE
NONE = np.zeros(COUNT, bool)
FORMS = ("tokens", "messages", "some")


def case(form: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    projected = rng.normal(size=(COUNT, STATES, 4, RANK)).astype(np.float32)
    at = np.arange(COUNT)
    gather = {"tokens": at >= 0, "messages": at < 50, "some": at % 3 > 0}[form]
    return projected, gather, gather if form != "messages" else at % 7 == 6


@jit
def whole(projected, gather, commit, starts, follows):
    rows = Rows(jnp.zeros(GROUPS, jnp.int32), 0, TILE)
    kept = jnp.arange(COUNT) == 20
    return delta_rule(Tokens(projected, gather, commit, kept), starts, follows, rows)


@jit
def single(projected, gather, commit, starts):
    rows = Rows(jnp.zeros(4, jnp.int32), 4, TILE)
    return delta_rule(Tokens(projected, gather, commit, jnp.zeros(4, bool)), starts, jnp.zeros(4, bool), rows)


def empty(groups: int = GROUPS) -> np.ndarray:
    return np.zeros((groups, STATES, RANK + EXTRA, RANK), np.float32)


CHAIN = np.arange(GROUPS) > 0


@jit
def gradient(projected, gather, commit, weights):
    def loss(x):
        rows = Rows(jnp.zeros(GROUPS, jnp.int32), 0, TILE)
        doing = Tokens(x, gather, commit, jnp.zeros(COUNT, bool))
        return jnp.sum(delta_rule(doing, jnp.zeros_like(empty()), jnp.asarray(CHAIN), rows).read * weights)

    return jax.grad(loss)(projected)
