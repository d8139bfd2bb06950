"""The index of sparse attention: attention to as many keys as there are is attention to all; to fewer, it is not."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.batch import KVPool
from pefx.steps import score
from tests.model_small import make_base, random_tokens, train_batch, variant

FULL = variant(
    layers=1, dense_layers=(0,), query_rank=11, kv_rank=20, nope_head_size=7, rope_head_size=4, value_head_size=5
)
SPARSE = replace(FULL, index_keys=64, index_heads=3, index_head_size=10)
BATCH = train_batch(random_tokens([30, 12]), [-1, -1])


@pytest.fixture(scope="module")
def found():
    """Log-probabilities with all keys, with an index that chooses all, and with one that chooses six."""
    sparse = make_base(SPARSE)
    full = make_base(FULL)
    for name in ("kv_a_proj", "kv_b_proj", "q_a_proj", "q_b_proj", "o_proj", "q_a_norm", "kv_a_norm"):
        ours, theirs = full.segments[0].block.attention, sparse.segments[0].block.attention
        getattr(ours, name)[...] = getattr(theirs, name)[...]
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(full.segments[0].block.feed, name)[...] = getattr(sparse.segments[0].block.feed, name)[...]
    for name in ("input_norm", "post_norm"):
        getattr(full.segments[0].block, name)[...] = getattr(sparse.segments[0].block, name)[...]
    full.embed[...], full.final_norm[...] = sparse.embed[...], sparse.final_norm[...]
    few = make_base(replace(SPARSE, index_keys=6))
    return [np.asarray(score(base, None, BATCH)) for base in (full, sparse, few)]


def test_a_choice_of_all_keys_is_attention_to_all(found):
    full, every, _ = found
    np.testing.assert_array_equal(full, every)


def test_a_choice_of_six_changes_what_comes_after_six(found):
    _, every, few = found
    np.testing.assert_array_equal(few[:6], every[:6])
    assert np.abs(few[6:29] - every[6:29]).max() > 1e-3


def test_the_pool_holds_index_keys_where_there_is_an_index():
    assert KVPool.zeros(FULL, 3, 4).index is None
    index = KVPool.zeros(SPARSE, 3, 4).index
    assert index is not None
    assert index.shape == (1, 3, 1, 4, 10)
