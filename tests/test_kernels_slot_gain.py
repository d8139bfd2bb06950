"""Gains by slot against one product per row: values and gradients, whoever shares the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.slot_gain.api import slot_gain
from kernels.slot_gain.reference import slot_gain as reference
from pefx.compiler import jit
from tests.lora_cases import Layout, assert_close

TO_THE_BIT = True

LAYOUT = Layout(singles=13, tiles=8, tile=4, slots=50)
WIDTH = 33
TYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


@jit
def _kernel(y, gains, slots, offset, dy):
    rows = LAYOUT.rows_of(slots)
    out, pull = jax.vjp(lambda y, gains: slot_gain(y, gains, offset, rows), y, gains)
    return out, *pull(dy)


@jit
def _oracle(y, gains, slots, offset, dy):
    folded = jnp.where(slots < 0, -1, offset + slots)
    out, pull = jax.vjp(lambda y, gains: reference(y, gains, folded), y.astype(jnp.float32), gains)
    return out, *pull(dy.astype(jnp.float32))


def draw_case(data: st.DataObject, dtype):
    slots = LAYOUT.draw_slots(data)
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "numbers"))
    y, dy = jnp.asarray(rng.normal(size=(2, LAYOUT.rows, WIDTH)), dtype)
    gains = rng.normal(size=(LAYOUT.layers * LAYOUT.slots, WIDTH)).astype(np.float32)
    return y, gains, slots, np.int32(LAYOUT.slots * data.draw(st.integers(0, LAYOUT.layers - 1), "layer")), dy


@TYPES
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, data):
    case = draw_case(data, dtype)
    y, _, slots, offset, dy = case
    got = _kernel(*case)
    assert [g.dtype for g in got] == [dtype, dtype, jnp.float32]
    for g, w in zip(got, _oracle(*case), strict=True):
        assert_close(g, w, dtype)
    for g, w in zip(got[:2], (y, dy), strict=True):
        np.testing.assert_array_equal(np.asarray(g)[slots < 0], np.asarray(w)[slots < 0])
    idle = np.setdiff1d(np.arange(len(case[1])), offset + slots[slots >= 0])
    assert not np.asarray(got[2])[idle].any()


@TYPES
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(dtype, data):
    y, gains, slots, offset, dy = draw_case(data, dtype)
    slot = data.draw(st.integers(0, LAYOUT.slots - 1))
    slots[:3], slots[LAYOUT.singles : LAYOUT.singles + 2 * LAYOUT.tile] = slot, slot
    mine, at = slots == slot, int(offset) + slot
    # What the others hold must not matter, not even where it is no number.
    alone_y, alone_dy = (jnp.where(mine[:, None], rows, jnp.asarray(np.nan, dtype)) for rows in (y, dy))
    alone_gains = np.where(np.arange(len(gains))[:, None] == at, gains, np.float32(np.nan))
    together = _kernel(y, gains, slots, offset, dy)
    apart = _kernel(alone_y, alone_gains, np.where(mine, slot, -1).astype(np.int32), offset, alone_dy)
    for t, s, index in zip(together, apart, (mine, mine, at), strict=True):
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])


@TYPES
def test_a_gain_of_one_keeps_every_bit(dtype):
    y = jnp.asarray(np.random.default_rng(0).normal(size=(LAYOUT.rows, WIDTH)), dtype)
    slots = LAYOUT.spread(np.arange(LAYOUT.singles + LAYOUT.tiles) % LAYOUT.slots)
    out, dy, _ = _kernel(y, np.ones((2 * LAYOUT.slots, WIDTH), np.float32), slots, np.int32(0), -y)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(y))
    np.testing.assert_array_equal(np.asarray(dy), np.asarray(-y))
