"""Latent attention against keys and values of every head, made from the formulas in jax.numpy, and its adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels.factors import Factors
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.layers.mla import LatentAttention, mla
from pefx.layers.rope import angles
from tests.model_small import PAGE, TOKENS, random_tokens, train_batch, variant

LATENT = variant(
    rotary_neighbours=True, kv_rank=20, query_rank=11, nope_head_size=7, rope_head_size=4, value_head_size=5
)
DIRECT = variant(rotary_neighbours=True, kv_rank=20, nope_head_size=7, rope_head_size=4, value_head_size=5)
SITES = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")
SEQUENCES, SLOTS = random_tokens([18, 5, 16]), [1, -1, 0]
BATCH = jax.tree.map(jnp.asarray, train_batch(SEQUENCES, SLOTS).tokens)
RANK, SCALES = 3, (2.0, 0.5)


def weights_of(config, rng):
    """One layer's weights, norms that are not one."""
    found = jax.eval_shape(lambda: LatentAttention(config, 1, nnx.Rngs(0)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape[1:]) * x.shape[-1] ** -0.5 + 0.2, x.dtype), found)


def factors_of(weights, rng, slots: int = 2):
    found = {}
    for name in SITES:
        if getattr(weights, name) is not None:
            out, size = getattr(weights, name).shape
            a, b = (jnp.asarray(rng.normal(size=(slots, RANK, n)) * 0.3, jnp.float32) for n in (size, out))
            found[name] = Factors(a, b, jnp.asarray(SCALES), jnp.asarray(0, jnp.int32))
    return found


def layer(config, x, weights, factors):
    turn = angles(BATCH.positions, config)
    pool = KVPool.zeros(config, TOKENS // PAGE, PAGE)
    return mla(x, weights, config, factors, BATCH.by_slot(), BATCH, (pool, jnp.asarray(1, jnp.int32), turn))[0]


def rotated(x, theta):
    """Pairs of neighbours."""
    size = x.shape[-1]
    frequency = theta ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = jnp.maximum(BATCH.positions, 0).astype(jnp.float32)[:, None] * frequency
    z = (x[..., ::2] + 1j * x[..., 1::2]) * jnp.exp(1j * angle)[:, None]
    return jnp.stack([z.real, z.imag], -1).reshape(x.shape)


def norm(x, weight):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
def plain(config, x, weights, factors):
    """Keys and values of every head; factors taken row by row."""
    c, n, slot = config, len(x), jnp.maximum(BATCH.slots, 0)

    def project(name, x):
        f = factors[name]
        z = jnp.einsum("td,trd->tr", x, f.a[slot]) * f.scales[slot][:, None]
        own = jnp.where((BATCH.slots >= 0)[:, None], jnp.einsum("tr,trf->tf", z, f.b[slot]), 0)
        return x @ getattr(weights, name)[...].T + own

    if c.query_rank:
        q = project("q_b_proj", norm(project("q_a_proj", x), weights.q_a_norm[...]))
    else:
        q = project("q_proj", x)
    q = q.reshape(n, c.heads, -1)
    kv = project("kv_a_proj", x)
    both = project("kv_b_proj", norm(kv[:, : c.kv_rank], weights.kv_a_norm[...])).reshape(n, c.heads, -1)
    k_rope = jnp.repeat(rotated(kv[:, None, c.kv_rank :], c.rope_theta), c.heads, 1)
    k = jnp.concatenate([both[..., : c.nope_head_size], k_rope], -1)
    q = jnp.concatenate([q[..., : c.nope_head_size], rotated(q[..., c.nope_head_size :], c.rope_theta)], -1)
    s = jnp.einsum("qhd,khd->hqk", q, k) * (c.nope_head_size + c.rope_head_size) ** -0.5
    same = BATCH.sequences[:, None] == BATCH.sequences
    see = same & (BATCH.positions[:, None] >= BATCH.positions) & (BATCH.positions >= 0)
    p = jax.nn.softmax(jnp.where(see | jnp.eye(n, dtype=bool), s, -jnp.inf), -1)
    return project("o_proj", jnp.einsum("hqk,khd->qhd", p, both[..., c.nope_head_size :]).reshape(n, -1))


@pytest.mark.parametrize("config", [LATENT, DIRECT], ids=["queries by a latent", "queries at once"])
def test_values_and_gradients_are_those_of_keys_of_every_head(config):
    rng = np.random.default_rng(0)
    weights = weights_of(config, rng)
    factors = factors_of(weights, rng)
    live = (BATCH.positions >= 0)[:, None]
    x, do = (jnp.asarray(rng.normal(size=(TOKENS, config.hidden)), jnp.float32) for _ in range(2))

    def with_gradients(function):
        def of(x, pairs):
            own = {name: f._replace(a=pairs[name][0], b=pairs[name][1]) for name, f in factors.items()}
            return jnp.where(live, function(config, x, weights, own), 0)

        def both(x, pairs):
            y, pull = jax.vjp(of, x, pairs)
            return y, pull(do)

        return jit(both)(x, {name: (f.a, f.b) for name, f in factors.items()})

    (got, gradients), (want, others) = with_gradients(layer), with_gradients(plain)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    for mine, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-5 * max(1, np.abs(other).max()))
