"""The gated feed-forward layer against its formula, with and without adapters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kernels.factors import Factors
from kernels.rows import rows_of
from pefx.compiler import jit
from pefx.layers.mlp import Mlp, mlp
from tests.model_small import MODEL

RANK, SLOTS, ROWS = 8, 2, 6
SITES = {"gate_proj": (33, 21), "up_proj": (33, 21), "down_proj": (21, 33)}


@jit
def _run(x, weights, factors, slots):
    rows = rows_of(slots, ROWS, 2)
    sites = {
        name: Factors(pair[0], pair[1], jnp.full(SLOTS, 0.5), jnp.asarray(0, jnp.int32))
        for name, pair in factors.items()
    }
    return mlp(x, weights, sites, rows)


def test_it_is_its_formula_with_each_rows_adapter():
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda w: w[0], Mlp(MODEL, 1, 21, nnx.Rngs(0)))
    x, slots = rng.normal(size=(ROWS, 33)).astype(np.float32), np.array([0, 1, -1, 1, -1, 0], np.int32)
    factors = {
        name: [rng.normal(size=(SLOTS, RANK, n)).astype(np.float32) * 0.3 for n in widths]
        for name, widths in SITES.items()
    }
    got = _run(x, weights, factors, slots)
    assert got.dtype == jnp.float32
    for row, slot in enumerate(slots):

        def project(y, name, slot=slot):
            a, b = (f[slot] for f in factors[name])
            return y @ np.asarray(getattr(weights, name)[...]).T + (0.5 * (y @ a.T) @ b if slot >= 0 else 0)

        gate = project(x[row], "gate_proj")
        hidden = gate / (1 + np.exp(-gate)) * project(x[row], "up_proj")
        np.testing.assert_allclose(got[row], project(hidden, "down_proj"), rtol=1e-4, atol=1e-5)


def test_weights_are_out_by_in_and_stacked():
    weights = Mlp(MODEL, 2, 21, nnx.Rngs(0))
    assert weights.gate_proj.shape == weights.up_proj.shape == (2, 21, 33)
    assert weights.down_proj.shape == (2, 33, 21)
