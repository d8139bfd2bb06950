"""The TPU's kernels of LoRA inside an expert layer in the interpreter: values, gradients, laws, and no races."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.grouped_matmul.block_sizes as grouped_sizes
from kernels.expert_lora import block_sizes
from kernels.grouped_matmul.api import grouped_matmul
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit
from tests.expert_cases import Layer
from tests.interpreter import in_the_interpreter

# Few rows, since each step of a grid takes 10 ms here; pairs that reach from one tile into the next.
LAYER, CHUNKS, TILE = Layer(rows=30, experts=3, slots=4, size=(33, 17)), (16, 8), 8

_kernel, _oracle = jit(LAYER.kernel(CHUNKS)), jit(LAYER.oracle)


@pytest.mark.parametrize(
    ("form", "rank", "dtype"),
    [("both", 8, jnp.float32), ("expands", 3, jnp.bfloat16), ("shrinks", 64, jnp.float32)],
    ids=str,
)
@settings(max_examples=2)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(form, rank, dtype, data):
    case = LAYER.draw(data, form, rank, dtype)
    LAYER.assert_like_the_reference(in_the_interpreter(_kernel, *case), _oracle(*case), case, dtype)


@settings(max_examples=2)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(data):
    case = LAYER.draw(data, "both", 8, jnp.float32)
    slot = data.draw(st.integers(0, LAYER.slots - 1))
    case[5][:9] = slot
    together, apart = (in_the_interpreter(_kernel, *c) for c in (case, LAYER.only(slot, case)))
    LAYER.assert_same_bits_of(slot, together, apart, case)


@jit
def _decoded_and_not(x, _z, w, factors, expert, slots, _cotangents):
    """The same rows in tiles of eight single rows, in tiles of one pair each, and by the bare experts."""
    both = [LAYER.project(x, None, w, factors, LAYER.tiles(expert, slots, (TILE, n)))[0] for n in (1, TILE)]
    tiles = tile_map(expert, groups=LAYER.experts, tile=TILE)
    bare = grouped_matmul(take_rows(x, tiles.source), w, tiles, jnp.asarray(LAYER.experts, jnp.int32))
    return *both, take_rows(bare, tiles.place)


@settings(max_examples=2)
@given(data=st.data())
def test_a_row_has_the_same_bits_decoded_and_in_a_chunk_and_without_a_slot_those_of_the_experts(data):
    case = LAYER.draw(data, "both", 8, jnp.float32)
    decoded, chunked, bare = map(np.asarray, in_the_interpreter(_decoded_and_not, *case))
    np.testing.assert_array_equal(decoded, chunked)
    np.testing.assert_array_equal(decoded[case[5] < 0], bare[case[5] < 0])
    np.testing.assert_allclose(decoded, np.asarray(_oracle(*case)[0]), rtol=0, atol=1e-4)


def test_several_blocks_and_factors_gathered_in_several_groups(monkeypatch):
    monkeypatch.setattr(grouped_sizes, "MATRIX_BYTES", 128 * 256 * 4)
    monkeypatch.setattr(block_sizes, "RUNS", 2)
    layer = Layer(rows=24, experts=2, slots=3, size=(256, 128))
    kernel, oracle = jit(layer.kernel((32, 8))), jit(layer.oracle)

    @settings(max_examples=1)
    @given(data=st.data())
    def run(data):
        case = layer.draw(data, "both", 8, jnp.float32)
        case[4][:], case[5][:] = 1, np.arange(24) % 3  # one tile, three runs
        layer.assert_like_the_reference(in_the_interpreter(kernel, *case), oracle(*case), case, jnp.float32)

    run()
