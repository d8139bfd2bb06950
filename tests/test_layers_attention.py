"""The attention layer against numpy, and the layer of the pool that it writes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.layers.attention import Attention, attention
from pefx.layers.rope import angles
from tests.model_small import MODEL, PAGE, TOKENS, Plain, make_base, random_tokens, split_rows, train_batch, variant

SEQUENCES = random_tokens([18, 5])
BATCH = train_batch(SEQUENCES, [-1, -1]).tokens


@jit
def _layer(x, weights, pool, layer):
    turn = angles(jnp.asarray(BATCH.positions), MODEL)
    return attention(x, weights, MODEL, {}, None, BATCH, (pool, layer, turn))


def test_it_is_plain_attention_and_writes_its_own_layer_of_the_pool():
    base = make_base()
    plain = Plain(base)
    x = np.random.default_rng(0).normal(size=(TOKENS, MODEL.hidden)).astype(np.float32)
    pages = TOKENS // PAGE
    pool = jax.tree.map(lambda p: p + 5, KVPool.zeros(MODEL, pages, PAGE))
    # Layer 2 is the second of its segment's... one: segments are [0], [1], [2].
    weights = jax.tree.map(lambda w: w[0], base.segments[2].block.attention)
    y, after = _layer(x, weights, pool, np.int32(2))
    assert y.dtype == jnp.float32
    for mine, got in zip(split_rows(SEQUENCES, x), split_rows(SEQUENCES, y), strict=True):
        want = plain._attention(mine.astype(np.float64), plain.layers[2][1], 2)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for new, old in ((after.keys, pool.keys), (after.values, pool.values)):
        np.testing.assert_array_equal(new[:2], old[:2])
        assert (np.asarray(new[2, 0]) != 5).all()
        np.testing.assert_array_equal(new[2, 3], old[2, 3])


def test_projections_are_out_by_in_and_stacked():
    weights = Attention(MODEL, 2, nnx.Rngs(0))
    assert weights.q_proj.shape == (2, 18, 33)
    assert weights.k_proj.shape == weights.v_proj.shape == (2, 6, 33)
    assert weights.o_proj.shape == (2, 33, 18)
    assert weights.q_norm is not None
    assert weights.k_norm is not None
    assert weights.q_norm.shape == weights.k_norm.shape == (2, 6)
    bare = Attention(variant(query_key_norm=False, attention_bias=True), 2, nnx.Rngs(0))
    assert bare.q_norm is bare.k_norm is None
    assert [x.shape for x in (bare.q_bias, bare.k_bias, bare.v_bias) if x is not None] == [(2, 18), (2, 6), (2, 6)]
