"""Grouped matmul against one product per row: values and gradients, at any group sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.grouped_matmul import block_sizes
from kernels.grouped_matmul.api import grouped_matmul
from kernels.grouped_matmul.reference import grouped_matmul as reference
from kernels.implementation import INTERPRETED, implementation
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit
from tests.interpreter import in_the_interpreter

TO_THE_BIT = True

ROWS, GROUPS, LAYERS, D, F = 43, 45, 2, 11, 7


def _both(tile: int):
    @jit
    def kernel(x, w, group, offset, dy):
        tiles = tile_map(group, groups=GROUPS, tile=tile)

        def product(x, w):
            return take_rows(grouped_matmul(take_rows(x, tiles.source), w, tiles, offset), tiles.place)

        y, pull = jax.vjp(product, x, w)
        return y, *pull(dy.astype(y.dtype))

    return kernel


KERNELS = {tile: _both(tile) for tile in (2, 32)}
_on_tpu = _both(8)


@jit
def _oracle(x, w, group, offset, dy):
    folded = jnp.where(group < 0, -1, offset + group)
    y, pull = jax.vjp(lambda x, w: reference(x, w, folded), x.astype(jnp.float32), w.astype(jnp.float32))
    return y, *pull(dy)


def draw_case(data: st.DataObject, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["any", "few", "giant", "singletons", "nobody"]))
    group = rng.choice(rng.permutation(GROUPS)[: {"few": 3, "giant": 1}.get(kind, GROUPS)], ROWS)
    group = np.where(rng.random(ROWS) < (0 if kind == "giant" else 0.2), -1, group)
    if kind == "singletons":
        group = rng.permutation(GROUPS)[:ROWS]
    if kind == "nobody":
        group[:] = -1
    x, w = rng.normal(size=(ROWS, D)), rng.normal(size=(LAYERS * GROUPS, D, F))
    dy = jnp.asarray(rng.normal(size=(ROWS, F)), dtype).astype(jnp.float32)
    offset = np.int32(GROUPS * rng.integers(LAYERS))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), group.astype(np.int32), offset, dy


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tile", KERNELS)
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, tile, data):
    case = draw_case(data, dtype)
    assert_like_the_reference(KERNELS[tile](*case), case, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=2)
@given(data=st.data())
def test_the_tpus_values_and_gradients_are_those_of_the_reference(dtype, data):
    case = draw_case(data, dtype)
    assert_like_the_reference(in_the_interpreter(_on_tpu, *case), case, dtype)


def assert_like_the_reference(got, case, dtype):
    want = _oracle(*case)
    assert [g.dtype for g in got] == [dtype] * 3
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
    group, offset = case[2], int(case[3])
    assert not np.asarray(got[0], np.float32)[group < 0].any()
    idle = np.setdiff1d(np.arange(LAYERS * GROUPS), offset + group[group >= 0])
    assert not np.asarray(got[2], np.float32)[idle].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_rows_bits_do_not_depend_on_the_others(dtype, data):
    x, w, group, offset, dy = draw_case(data, dtype)
    group[0] = data.draw(st.integers(0, GROUPS - 1))
    alone = np.where(np.arange(ROWS) == 0, group, -1).astype(np.int32)
    together, apart = KERNELS[32](x, w, group, offset, dy), KERNELS[32](x, w, alone, offset, dy)
    np.testing.assert_array_equal(np.asarray(together[0])[0], np.asarray(apart[0])[0])
    np.testing.assert_array_equal(np.asarray(together[1])[0], np.asarray(apart[1])[0])


def test_a_group_of_several_tiles_sums_them_in_its_gradient():
    x, w = jnp.ones((ROWS, D)), jnp.ones((LAYERS * GROUPS, D, F))
    group = np.full(ROWS, 3, np.int32)
    _, _, dw = KERNELS[2](x, w, group, np.int32(GROUPS), jnp.ones((ROWS, F)))
    np.testing.assert_array_equal(dw[GROUPS + 3], np.full((D, F), ROWS, np.float32))
    assert float(jnp.sum(dw)) == ROWS * D * F


def refused(x, w, tile: int):
    tiles = tile_map(jnp.zeros(x.shape[0], jnp.int32), groups=2, tile=tile)
    with implementation(INTERPRETED):
        return jax.eval_shape(lambda x: grouped_matmul(take_rows(x, tiles.source), w, tiles, jnp.int32(0)), x)


def test_what_the_tpus_kernel_cannot_take_is_refused():
    w = jnp.zeros((2, 16, 16))
    with pytest.raises(ValueError, match="tiles of 4 rows"):
        refused(jnp.zeros((8, 16)), w, 4)
    with pytest.raises(ValueError, match="float32 and matrices of bfloat16"):
        refused(jnp.zeros((8, 16)), w.astype(jnp.bfloat16), 8)
    with pytest.raises(ValueError, match="a side of 4097"):
        refused(jnp.zeros((8, 4096)), jnp.zeros((1, 4096, 4097)), 8)


def test_a_block_divides_its_axis():
    assert block_sizes.width_of_block(768, 2048, 2) == 768
    assert block_sizes.width_of_block(2048, 768, 2) == 2048
    assert block_sizes.width_of_block(2048, 7168, 2) == 256
    assert block_sizes.width_of_block(7168, 2048, 2) == 896
    assert block_sizes.width_of_block(4097, 4096, 4) is None
