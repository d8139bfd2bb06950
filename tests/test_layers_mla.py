"""Latent attention against keys and values of every head, made from the formulas in numpy; its adapters' gradients."""

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
from tests.model_small import PAGE, TOKENS, random_tokens, split_rows, train_batch, variant

LATENT = variant(kv_lora_rank=20, q_lora_rank=11, nope_size=7, rope_size=4, value_size=5)
DIRECT = variant(kv_lora_rank=20, nope_size=7, rope_size=4, value_size=5)
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


def layer(config, x, weights, factors, batch):
    turn = angles(jnp.asarray(batch.positions), config.rope_size, config.rope_theta)
    pool = KVPool.zeros(config, TOKENS // PAGE, PAGE)
    return mla(x, weights, config, factors, batch.by_slot(), batch, (pool, jnp.asarray(1, jnp.int32), turn))[0]


def rotated(x, theta):
    """Pairs of neighbours, one sequence."""
    size = x.shape[-1]
    angle = jnp.arange(len(x), dtype=jnp.float32)[:, None] * theta ** -(jnp.arange(0, size, 2) / size)
    z = (x[..., ::2] + 1j * x[..., 1::2]) * jnp.exp(1j * angle)[:, None]
    return jnp.stack([z.real, z.imag], -1).reshape(x.shape)


def norm(x, weight):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
def plain(x, weights, factors, config, slot):
    """One sequence, keys and values of every head."""
    c, n = config, len(x)

    def project(name, x):
        y = x @ getattr(weights, name)[...].T
        if slot < 0:
            return y
        f = factors[name]
        return y + f.scales[slot] * (x @ f.a[slot].T) @ f.b[slot]

    q = project("q_b_proj", norm(project("q_a_proj", x), weights.q_a_norm[...])) if c.q_lora_rank else project("q_proj", x)
    q = q.reshape(n, c.heads, -1)
    kv = project("kv_a_proj", x)
    both = project("kv_b_proj", norm(kv[:, : c.kv_lora_rank], weights.kv_a_norm[...])).reshape(n, c.heads, -1)
    k_rope = jnp.repeat(rotated(kv[:, None, c.kv_lora_rank :], c.rope_theta), c.heads, 1)
    k = jnp.concatenate([both[..., : c.nope_size], k_rope], -1)
    q = jnp.concatenate([q[..., : c.nope_size], rotated(q[..., c.nope_size :], c.rope_theta)], -1)
    s = jnp.einsum("qhd,khd->hqk", q, k) * (c.nope_size + c.rope_size) ** -0.5
    p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((n, n), bool))[None], s, -jnp.inf), -1)
    return project("o_proj", jnp.einsum("hqk,khd->qhd", p, both[..., c.nope_size :]).reshape(n, -1))


@pytest.mark.parametrize("config", [LATENT, DIRECT], ids=["queries by a latent", "queries at once"])
def test_values_and_gradients_are_those_of_keys_of_every_head(config):
    rng = np.random.default_rng(0)
    weights = weights_of(config, rng)
    factors = factors_of(weights, rng)
    x = rng.normal(size=(TOKENS, config.hidden)).astype(np.float32)
    do = rng.normal(size=x.shape).astype(np.float32)

    def of_pairs(pairs):
        return {name: f._replace(a=pairs[name][0], b=pairs[name][1]) for name, f in factors.items()}

    pairs = {name: (jnp.asarray(f.a), jnp.asarray(f.b)) for name, f in factors.items()}

    def served(x, pairs):
        return layer(config, x, weights, of_pairs(pairs), BATCH)

    def wanted(x, pairs):
        found, at = jnp.zeros_like(x), 0
        for tokens, slot in zip(SEQUENCES, SLOTS, strict=True):
            rows = slice(at, at + len(tokens))
            found = found.at[rows].set(plain(x[rows], weights, of_pairs(pairs), config, slot))
            at += -(-len(tokens) // PAGE) * PAGE
        return found

    live = (np.asarray(BATCH.positions) >= 0)[:, None]
    do = jnp.where(live, do, 0)

    def with_gradients(function):
        def both(x, pairs):
            y, pull = jax.vjp(function, x, pairs)
            return jnp.where(live, y, 0), pull(do)

        return jit(both)(jnp.asarray(x), pairs)

    (got, gradients), (want, others) = with_gradients(served), with_gradients(wanted)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    for mine, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-5 * max(1, np.abs(other).max()))
