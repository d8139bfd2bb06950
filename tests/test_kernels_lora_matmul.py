"""Mixed LoRA products against one product per row: values and gradients, whoever shares the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.factors import Factors
from kernels.lora_matmul import reference
from kernels.lora_matmul.api import expand, shrink
from pefx.adapters.bank import padded_rank
from pefx.compiler import jit
from tests.lora_cases import Layout, assert_close, assert_like_the_reference, assert_same_bits_of, oracle

TO_THE_BIT = True

LAYOUT = Layout(singles=13, tiles=8, tile=4, slots=50)
# (in, out, padded rank): odd widths, wide to narrow and back.
SIZES = [(33, 17, 8), (7, 65, 24), (5, 3, 64)]

_kernel, _oracle = jit(LAYOUT.kernel), jit(oracle)


@jit
def _halves(y, x, a, b, scales, slots, offset, dy):
    """The product as its two halves: z, the sum, and the gradients of x, a and b."""
    rows = LAYOUT.rows_of(slots)
    z, pull_z = jax.vjp(lambda x, a: shrink(x, Factors(a, None, scales, offset), rows), x, a)
    run = lambda y, z, b: expand(y, z, Factors(None, b, scales, offset), rows)  # noqa: E731
    total, pull = jax.vjp(run, y, z, b)
    delta = run(jnp.zeros(y.shape), z, b)
    dy, dz, db = pull(dy)
    return z, delta, total, dy, *pull_z(dz), db


@jit
def _oracle_of_halves(x, a, b, scales, slots, offset):
    folded = jnp.where(slots < 0, -1, offset + slots)
    z = reference.shrink(x, a, jnp.tile(scales, a.shape[0] // scales.shape[0]), folded)
    return z, reference.expand(z, b, folded)


def draw_case(data: st.DataObject, size, dtype):
    rank = data.draw(st.sampled_from([r for r in range(1, 65) if padded_rank(r) == size[2]]), "rank")
    return rank, LAYOUT.draw_numbers(data, size, rank, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, size, data):
    rank, case = draw_case(data, size, dtype)
    assert_like_the_reference(_kernel(*case), _oracle(*case), case, rank, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(dtype, data):
    _, case = draw_case(data, SIZES[0], dtype)
    slot = data.draw(st.integers(0, LAYOUT.slots - 1))
    slots = case[5]
    slots[:3], slots[LAYOUT.singles : LAYOUT.singles + 2 * LAYOUT.tile] = slot, slot
    # What the others hold must not matter, not even where it is no number.
    assert_same_bits_of(slot, _kernel(*case), _kernel(*LAYOUT.only(slot, case, dtype)), case)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_the_halves_make_the_whole(dtype, data):
    _, case = draw_case(data, SIZES[0], dtype)
    _, x, a, b, scales, slots, offset, _ = case
    z, delta, y, dy, dx, da, db = _halves(*case)
    whole = _kernel(*case)
    assert z.dtype == dtype
    assert delta.dtype == jnp.float32
    for got, want in zip((z, delta), _oracle_of_halves(x, a, b, scales, slots, offset), strict=True):
        assert_close(got, want, dtype)
        assert not np.asarray(got, np.float32)[slots < 0].any()
    np.testing.assert_array_equal(y, whole[0])
    np.testing.assert_array_equal(dy, whole[1])
    for got, want in zip((dx, da, db), whole[2:], strict=True):
        assert got.dtype == want.dtype
        assert_close(got, want, dtype)
