"""LoRA inside an expert layer against one product per row, in both expert forms: values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.expert_lora.api import tile_sizes
from kernels.expert_lora.block_sizes import CHUNKS, DECODE, TPU_CHUNKS, TPU_DECODE, WINDOW
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.implementation import implementation
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit
from tests.expert_cases import FORMS, Layer

TO_THE_BIT = True

LAYER, TILE = Layer(), 8

_kernel, _oracle = jit(LAYER.kernel((TILE, 1))), jit(LAYER.oracle)


@pytest.mark.parametrize(
    ("form", "rank", "dtype"),
    [
        ("both", 8, jnp.float32),
        ("both", 64, jnp.float32),
        ("both", 8, jnp.bfloat16),
        ("expands", 8, jnp.float32),
        ("shrinks", 24, jnp.float32),
        ("shrinks", 8, jnp.bfloat16),
    ],
    ids=str,
)
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(form, rank, dtype, data):
    case = LAYER.draw(data, form, rank, dtype)
    LAYER.assert_like_the_reference(_kernel(*case), _oracle(*case), case, dtype)


@jit
def _bare(x, w, expert):
    tiles = tile_map(expert, groups=LAYER.experts, tile=TILE)
    y = grouped_matmul(take_rows(x, tiles.source), w, tiles, jnp.asarray(LAYER.experts, jnp.int32))
    return take_rows(y, tiles.place)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=10)
@given(data=st.data())
def test_rows_of_the_bare_base_keep_its_bits(dtype, data):
    case = LAYER.draw(data, "both", 8, dtype)
    x, _, w, _, expert, slots, _ = case
    bare = slots < 0
    got, want = np.asarray(_kernel(*case)[0], np.float32), np.asarray(_bare(x, w, expert), np.float32)
    assert got[bare].tobytes() == want[bare].tobytes()


@pytest.mark.parametrize("form", sorted(FORMS))
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(form, data):
    case = LAYER.draw(data, form, 8, jnp.float32)
    slot = data.draw(st.integers(0, LAYER.slots - 1))
    case[5][:5] = slot
    # What the others hold must not matter, not even where it is no number.
    LAYER.assert_same_bits_of(slot, _kernel(*case), _kernel(*LAYER.only(slot, case)), case)


def test_block_sizes_keep_within_the_rows_that_keep_their_bits():
    for tile, subtile in (DECODE, CHUNKS):
        assert 2 <= tile <= 32
        assert tile % subtile == 0
    assert 2 <= WINDOW <= 32


def test_a_layer_has_one_size_of_tiles_for_all_its_projections():
    x, w = jnp.zeros((4, 9)), jnp.zeros((5, 9, 13))
    adapted = (w, Factors(jnp.zeros((6, 5, 8, 9)), None, jnp.ones(6), jnp.int32(0)))
    assert tile_sizes(x, [(w, None), (w, None)], singles=False) == CHUNKS
    assert tile_sizes(x, [(w, None), adapted], singles=False) is None
    assert tile_sizes(x, [(w, None), adapted], singles=True) == DECODE
    wide = (w, Factors(jnp.zeros((6, 5, 65, 9)), None, jnp.ones(6), jnp.int32(0)))
    with implementation("pallas_tpu"):
        assert tile_sizes(x, [(w, None), adapted], singles=False) == TPU_CHUNKS
        assert tile_sizes(x, [(w, None), adapted], singles=True) == TPU_DECODE
        with pytest.raises(ValueError, match="rank 65"):
            tile_sizes(x, [(w, None), wide], singles=True)
