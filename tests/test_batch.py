"""The step's inputs: numpy in, arrays of checked shapes through jit, a pool of the base's shape."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from pefx.batch import KVPool, TokenBatch
from pefx.config import ModelConfig
from pefx.packing import Sizes, Span, pack

SIZES = Sizes(singles=2, tiles=3, sequences=3, blocks=3, page_size=4, tile=2)


def small(spans) -> dict:
    return pack(spans, SIZES)


def test_one_compiled_step_serves_every_batch_of_its_sizes():
    step = jax.jit(lambda batch: jnp.sum(batch.positions) + batch.page_size)
    assert int(step(TokenBatch(**small([Span([1, 2], 5, 0, [0, 1])])))) == 5 + 6 - 6 + 4
    assert int(step(TokenBatch(**small([])))) == -8 + 4
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    other = pack([], replace(SIZES, page_size=2))
    assert int(step(TokenBatch(**other))) == -8 + 2
    assert step._cache_size() == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_sizes_are_static_and_all_else_are_arrays():
    leaves = jax.tree.leaves(TokenBatch(**small([])))
    assert len(leaves) == 6
    assert all(leaf.dtype == np.int32 for leaf in leaves)


def test_rows_are_owned_by_slots_for_adapters_and_by_sequences_for_attention():
    batch = TokenBatch(**small([Span([7, 8, 9], 0, 5, [2]), Span([4], 2, 3, [1])]))
    rows, layout = batch.by_slot(), batch.layout()
    np.testing.assert_array_equal(rows.owner, [3, -1, 5, 5, -1])
    np.testing.assert_array_equal(layout.rows.owner, [1, -1, 0, 0, -1])
    assert (rows.singles, rows.tile) == (layout.rows.singles, layout.rows.tile) == (2, 2)
    assert layout.positions is batch.positions
    assert layout.pages is batch.pages
    assert layout.lengths is batch.lengths


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", np.zeros(7, np.int32)),
        ("slots", np.zeros(8, np.int64)),
        ("sequences", np.zeros(1, np.int32)),
        ("lengths", np.zeros(2, np.int32)),
    ],
)
def test_a_field_of_another_shape_or_type_is_refused(field, value):
    with pytest.raises(TypeCheckError):
        TokenBatch(**{**small([]), field: value})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pool_has_a_page_of_keys_and_values_for_every_layer(precision):
    config = ModelConfig(layers=3, kv_heads=2, head_size=6, precision=precision)
    pool = KVPool.zeros(config, pages=5, page_size=4)
    assert pool.values is not None
    assert pool.keys.shape == pool.values.shape == (3, 5, 2, 4, 6)
    assert pool.keys.dtype == pool.values.dtype == jnp.dtype(precision)
    assert not np.asarray(pool.keys, np.float32).any()
    with pytest.raises(TypeCheckError):
        KVPool(pool.keys, pool.values[:, 1:])
