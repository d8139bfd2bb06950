"""The TPU's mixed LoRA kernels in the interpreter: values, gradients, laws as for the portable form, and no races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreted

from kernels.factors import Factors
from kernels.implementation import INTERPRETED, implementation
from kernels.lora_matmul import block_sizes
from kernels.lora_matmul.api import expand, lora_matmul, shrink
from kernels.rows import Rows
from pefx.compiler import jit
from tests.lora_cases import Layout, assert_like_the_reference, assert_same_bits_of, oracle

# Single rows that fill one group of eight and begin another. A tile has as many rows as a group: on CPU a product's
# bits depend on how many columns it has, on a TPU the matrix unit always has as many.
LAYOUT = Layout(singles=9, tiles=3, tile=8, slots=12)
SIZE = (33, 17, 64)  # (in, out, rank in the bank)
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])

_kernel, _oracle = jit(LAYOUT.kernel), jit(oracle)


def in_the_interpreter(function, *arguments):
    """What a compiled function of interpreted kernels returns, finished before anything else is compiled; no race."""
    with implementation(INTERPRETED):
        found = jax.block_until_ready(function(*arguments))
    assert interpreted.races is None or not interpreted.races.races_found
    return found


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 columns, and gradients of a and b in a kernel each."""
    for name in ("INNER", "OUTER", "OUTER_BACKWARD"):
        monkeypatch.setattr(block_sizes, name, block_sizes.LANES)
    monkeypatch.setattr(block_sizes, "SUMS", 0)


@DTYPES
@settings(max_examples=3)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, data):
    rank = data.draw(st.integers(1, 64), "rank")
    case = LAYOUT.draw_numbers(data, SIZE, rank, dtype)
    assert_like_the_reference(in_the_interpreter(_kernel, *case), _oracle(*case), case, rank, dtype)


@settings(max_examples=2)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(data):
    case = LAYOUT.draw_numbers(data, SIZE, 64, jnp.float32)
    slot = data.draw(st.integers(0, LAYOUT.slots - 1))
    slots = case[5]
    slots[:3], slots[LAYOUT.singles : LAYOUT.singles + 2 * LAYOUT.tile] = slot, slot
    together = in_the_interpreter(_kernel, *case)
    apart = in_the_interpreter(_kernel, *LAYOUT.only(slot, case, jnp.float32))
    assert_same_bits_of(slot, together, apart, case)


def test_several_blocks_and_a_rank_to_be_padded(small_blocks):
    layout = Layout(singles=2, tiles=3, tile=8, slots=6)
    kernel = jit(layout.kernel)

    @settings(max_examples=2)
    @given(data=st.data())
    def run(data):
        case = layout.draw_numbers(data, (384, 256, 3), 3, jnp.float32)
        assert_like_the_reference(in_the_interpreter(kernel, *case), _oracle(*case), case, 3, jnp.float32)

    run()


@DTYPES
def test_a_row_has_the_same_bits_alone_and_in_a_tile_and_in_halves(dtype, small_blocks):
    rng = np.random.default_rng(0)
    d, f = 256, 256
    a, b = (rng.normal(size=(8, 8, n)).astype(np.float32) for n in (d, f))
    x, y = rng.normal(size=(8, d)).astype(np.float32), rng.normal(size=(8, f)).astype(np.float32)
    scales, zero = jnp.asarray(rng.uniform(0.5, 2, 8), jnp.float32), jnp.int32(0)
    # Row 5 belongs to slot 3 like the tile; its neighbours to others or to nobody.
    rows = Rows(jnp.asarray([4, 1, -1, 3, 0, 3, 7, 2, 3], jnp.int32), 8, 8)

    @jit
    def run(y, x):
        y, x = (jnp.concatenate([rows, rows]).astype(dtype) for rows in (y, x))
        whole = lora_matmul(y, x, Factors(a, b, scales, zero), rows)
        z = shrink(x, Factors(a, None, scales, zero), rows)
        return whole, z, expand(y, z, Factors(None, b, scales, zero), rows), y

    whole, z, halves, y = map(np.asarray, in_the_interpreter(run, y, x))
    np.testing.assert_array_equal(whole, halves)
    for array in (whole, z):
        np.testing.assert_array_equal(array[[3, 5]], array[[8 + 3, 8 + 5]])
    np.testing.assert_array_equal(whole[2], y[2])
    assert not z[2].any()


def test_the_halves_gradients_make_the_wholes():
    rng = np.random.default_rng(1)
    layout = Layout(singles=0, tiles=3, tile=8, slots=4)
    a, b = (jnp.asarray(rng.normal(size=(4, 8, n)), jnp.float32) for n in (33, 17))
    x, (y, dy) = jnp.asarray(rng.normal(size=(24, 33)), jnp.bfloat16), rng.normal(size=(2, 24, 17)).astype(np.float32)
    slots = layout.spread(np.array([2, -1, 2]))
    scales, zero = jnp.asarray([0.5, 1, 2, 4], jnp.float32), jnp.int32(0)
    rows = layout.rows_of(jnp.asarray(slots))

    def halves(y, x, a, b):
        return expand(y, shrink(x, Factors(a, None, scales, zero), rows), Factors(None, b, scales, zero), rows)

    got = in_the_interpreter(jit(lambda y, x, a, b, dy: jax.vjp(halves, y, x, a, b)[1](dy)), y, x, a, b, dy)
    want = in_the_interpreter(jit(layout.kernel), y, x, a, b, scales, slots, zero, dy)[1:]
    for g, w in zip(got, want, strict=True):  # a power of two as scale rounds nothing, so z's gradient is the same
        np.testing.assert_array_equal(np.asarray(g), np.asarray(w))


def refused(x, factors, rows):
    with implementation(INTERPRETED):
        return jax.eval_shape(lambda x: shrink(x, factors, rows), x)


def test_what_the_kernels_cannot_take_is_refused():
    factors = Factors(jnp.zeros((2, 8, 4097)), None, jnp.ones(2), jnp.int32(0))
    owner = jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="width 4097"):
        refused(jnp.zeros((16, 4097)), factors, Rows(owner, 0, 8))
    with pytest.raises(ValueError, match="tiles of 4 rows"):
        refused(jnp.zeros((8, 4097)), factors, Rows(owner, 0, 4))
    wide = factors._replace(a=jnp.zeros((2, 65, 16)))
    with pytest.raises(ValueError, match="rank 65"):
        refused(jnp.zeros((16, 16)), wide, Rows(owner, 0, 8))
    with pytest.raises(ValueError, match="float16"):
        refused(jnp.zeros((16, 16), jnp.float16), factors, Rows(owner, 0, 8))


def test_a_block_divides_its_axis():
    assert block_sizes.width_of_block(2048, 16, block_sizes.INNER) == 2048
    assert block_sizes.width_of_block(7168, 16, block_sizes.INNER) == 3584
    assert block_sizes.width_of_block(7168, 64, block_sizes.INNER) == 1024
    assert block_sizes.width_of_block(576, 64, block_sizes.OUTER) == 576
    assert block_sizes.width_of_block(4097, 8, block_sizes.INNER) is None
