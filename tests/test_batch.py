"""The step's inputs: numpy in, arrays of checked shapes through jit, a pool of the base's shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from pefx.batch import KVPool, TokenBatch
from pefx.config import ModelConfig
from pefx.packing import Span, pack

SIZES: dict[str, Any] = {"tokens": 8, "sequences": 2, "blocks": 3, "page_size": 4, "tile": 2}


def small(spans) -> dict:
    return pack(spans, **SIZES)


def test_one_compiled_step_serves_every_batch_of_its_sizes():
    step: Any = jax.jit(lambda batch: jnp.sum(batch.positions) + batch.page_size)
    assert int(step(TokenBatch(**small([Span([1, 2], 5, 0, [0, 1])])))) == 5 + 6 - 6 + 4
    assert int(step(TokenBatch(**small([])))) == -8 + 4
    assert step._cache_size() == 1
    other = pack([], **{**SIZES, "page_size": 2})
    assert int(step(TokenBatch(**other))) == -8 + 2
    assert step._cache_size() == 2


def test_the_page_size_is_static_and_all_else_are_arrays():
    leaves = jax.tree.leaves(TokenBatch(**small([])))
    assert len(leaves) == 9
    assert all(leaf.dtype == np.int32 for leaf in leaves)


def test_attention_reads_the_batchs_own_fields():
    batch = TokenBatch(**small([Span([7, 8, 9], 0, 1, [2])]))
    layout = batch.layout()
    for name in layout._fields:
        assert getattr(layout, name) is getattr(batch, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", np.zeros(7, np.int32)),
        ("slots", np.zeros(8, np.int64)),
        ("tile_sequence", np.zeros(1, np.int32)),
        ("lengths", np.zeros(3, np.int32)),
    ],
)
def test_a_field_of_another_shape_or_type_is_refused(field, value):
    with pytest.raises(TypeCheckError):
        TokenBatch(**{**small([]), field: value})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pool_has_a_page_of_keys_and_values_for_every_layer(precision):
    config = ModelConfig(layers=3, kv_heads=2, head_size=6, precision=precision)
    pool = KVPool.zeros(config, pages=5, page_size=4)
    assert pool.keys.shape == pool.values.shape == (3, 5, 4, 2, 6)
    assert pool.keys.dtype == pool.values.dtype == jnp.dtype(precision)
    assert not np.asarray(pool.keys, np.float32).any()
    with pytest.raises(TypeCheckError):
        KVPool(pool.keys, pool.values[:, 1:])
