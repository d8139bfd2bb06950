"""The grouping that all mixed matmuls share: where every row goes, and what a tile may depend on."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tiles import combine, dispatch, sum_by_group, sums_before, take_rows, tile_map
from pefx.compiler import jit

TO_THE_BIT = True

ROWS = 40
# (groups, subgroups, tile, subtile); the last has one row to a tile.
SHAPES = [(5, 1, 8, 8), (3, 4, 8, 2), (7, 3, 4, 4), (60, 1, 2, 2), (4, 2, 1, 1)]


@cache
def mapper(groups: int, subgroups: int, tile: int, subtile: int):
    return jit(lambda g, s: tile_map(g, s, groups=groups, subgroups=subgroups, tile=tile, subtile=subtile))


def draw_groups(data: st.DataObject, groups: int, rows: int = ROWS) -> np.ndarray:
    """Group of each row: any, one giant group, all in groups of their own as far as they go, or nobody."""
    kind = data.draw(st.sampled_from(["any", "giant", "singletons", "few", "nobody"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    if kind == "giant":
        return np.full(rows, rng.integers(groups), np.int32)
    if kind == "nobody":
        return np.full(rows, -1, np.int32)
    if kind == "singletons":
        drawn = np.full(rows, -1, np.int32)
        count = min(rows, groups)
        drawn[rng.permutation(rows)[:count]] = rng.permutation(groups)[:count]
        return drawn
    some = rng.permutation(groups)[: 2 if kind == "few" else groups]
    return np.where(rng.random(rows) < 0.2, -1, rng.choice(some, rows)).astype(np.int32)


def by_hand(group, subgroup, groups, subgroups, tile, subtile):
    """(row at each place, group of each tile, subgroup of each subtile) up to the last live tile, one row at a time."""
    source, tiles, subtiles = [], [], []
    for g in range(groups):
        begin = len(source)
        for s in range(subgroups):
            mine = [m for m in range(len(group)) if group[m] == g and subgroup[m] == s]
            mine += [len(group)] * (-len(mine) % subtile)
            source += mine
            subtiles += [s] * (len(mine) // subtile)
        gap = -(len(source) - begin) % tile
        source += [len(group)] * gap
        subtiles += [-1] * (gap // subtile)
        tiles += [g] * ((len(source) - begin) // tile)
    return source, tiles, subtiles


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=30)
@given(data=st.data())
def test_every_row_goes_where_the_obvious_loop_puts_it(shape, data):
    groups, subgroups, tile, subtile = shape
    group = draw_groups(data, groups)
    subgroup = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, subgroups, ROWS).astype(np.int32)
    tiles = mapper(*shape)(group, subgroup)
    source, tile_groups, subtile_groups = by_hand(group, subgroup, *shape)
    live = len(tile_groups)
    assert int(tiles.live) == live
    assert (tiles.tile, tiles.subtile) == (tile, subtile)
    size = tiles.source.shape[0]
    assert size == len(tiles.group) * tile == len(tiles.subgroup) * subtile >= len(source)
    np.testing.assert_array_equal(tiles.source, source + [ROWS] * (size - len(source)))
    np.testing.assert_array_equal(tiles.group, tile_groups + [-1] * (len(tiles.group) - live))
    rest = len(tiles.subgroup) - len(subtile_groups)
    np.testing.assert_array_equal(tiles.subgroup, subtile_groups + [-1] * rest)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=30)
@given(data=st.data())
def test_live_rows_have_exactly_one_place_in_stable_order(shape, data):
    groups, subgroups, tile, subtile = shape
    group = draw_groups(data, groups)
    subgroup = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, subgroups, ROWS).astype(np.int32)
    tiles = jax.tree.map(np.asarray, mapper(*shape)(group, subgroup))
    live = np.flatnonzero(group >= 0)
    size = len(tiles.source)
    np.testing.assert_array_equal(tiles.place[group < 0], size)
    np.testing.assert_array_equal(tiles.source[tiles.place[live]], live)
    assert sorted(tiles.source[tiles.source < ROWS]) == live.tolist()
    np.testing.assert_array_equal(tiles.group[tiles.place[live] // tile], group[live])
    np.testing.assert_array_equal(tiles.subgroup[tiles.place[live] // subtile], subgroup[live])
    for one in {(g, s) for g, s in zip(group[live], subgroup[live])}:
        mine = tiles.place[(group == one[0]) & (subgroup == one[1])]
        assert mine[0] % subtile == 0
        assert (np.diff(mine) == 1).all()
    for g in set(group[live]):
        assert tiles.place[group == g].min() % tile == 0


@settings(max_examples=30)
@given(data=st.data())
def test_what_a_groups_tiles_hold_depends_on_its_own_rows_alone(data):
    shape = SHAPES[1]
    groups, subgroups, tile, subtile = shape
    group, other = draw_groups(data, groups), draw_groups(data, groups)
    subgroup = np.random.default_rng(1).integers(0, subgroups, ROWS).astype(np.int32)
    mine = data.draw(st.integers(0, groups - 1))
    other = np.where(group == mine, mine, np.where(other == mine, -1, other)).astype(np.int32)
    held = []
    for one in (group, other):
        tiles = jax.tree.map(np.asarray, mapper(*shape)(one, subgroup))
        own = tiles.group == mine
        by_tile = tiles.source.reshape(-1, tile)[own], tiles.subgroup.reshape(-1, tile // subtile)[own]
        held.append(by_tile)
    np.testing.assert_array_equal(held[0][0], held[1][0])
    np.testing.assert_array_equal(held[0][1], held[1][1])


def test_without_subgroups_there_is_one():
    group = np.array([2, -1, 0, 2, 2], np.int32)
    tiles = jit(lambda group: tile_map(group, groups=3, tile=2))(group)
    assert int(tiles.live) == 3
    np.testing.assert_array_equal(tiles.place, [2, len(tiles.source), 0, 3, 4])
    np.testing.assert_array_equal(tiles.subgroup[:3], [0, 0, 0])


def test_take_rows_gives_zeros_past_the_end():
    x = jnp.arange(6, dtype=jnp.float32).reshape(3, 2) + 1
    np.testing.assert_array_equal(take_rows(x, jnp.array([2, 3, 0])), [[5, 6], [0, 0], [1, 2]])


TOKENS, COPIES, WIDTH, EXPERTS = 13, 3, 5, 4


@jit
def _dispatch(x, group, cotangent):
    tiles = tile_map(group, groups=EXPERTS, tile=4)
    y, pull = jax.vjp(lambda x: dispatch(x, tiles, COPIES), x)
    return tiles.source, y, pull(cotangent[: tiles.source.shape[0]].astype(x.dtype))[0]


@jit
def _combine(buffer, gates, group, cotangent):
    tiles = tile_map(group, groups=EXPERTS, tile=4)
    y, pull = jax.vjp(lambda b, g: combine(b, g, tiles), buffer[: tiles.source.shape[0]], gates)
    return tiles.source, y, *pull(cotangent)


def _close(got, want, dtype):
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=tolerance, atol=tolerance * 5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=20)
@given(data=st.data())
def test_dispatch_and_combine_are_their_dense_formulas(dtype, data):
    group = draw_groups(data, EXPERTS, TOKENS * COPIES)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), dtype)
    gates = rng.random((TOKENS, COPIES)).astype(np.float32)
    wide = jnp.asarray(rng.normal(size=(200, WIDTH)), dtype)
    out = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)

    source, y, dx = _dispatch(x, group, wide)
    size = len(source)
    # P[b, m] = 1 where row m (copy m % k of token m // k) lies at place b.
    placed = (np.asarray(source)[:, None] == np.arange(TOKENS * COPIES)).astype(np.float32)
    to_token = placed.reshape(size, TOKENS, COPIES).sum(2)
    buffer = np.asarray(wide, np.float32)[:size]
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), to_token @ np.asarray(x, np.float32))
    _close(dx, to_token.T @ buffer, dtype)

    source, y, d_buffer, d_gates = _combine(wide, gates, group, out)
    weighted = (placed.reshape(size, TOKENS, COPIES) * gates).sum(2)
    assert y.dtype == d_gates.dtype == jnp.float32
    assert d_buffer.dtype == dtype
    _close(y, weighted.T @ buffer, jnp.float32)
    _close(d_buffer, weighted @ out, dtype)
    back = np.einsum("bm,bd->md", placed, buffer).reshape(TOKENS, COPIES, WIDTH)
    _close(d_gates, np.einsum("tkd,td->tk", back, out), jnp.float32)


@settings(max_examples=20)
@given(st.lists(st.integers(-1, 3), min_size=9, max_size=9))
def test_parts_are_summed_by_group_and_nobodys_are_left_out(index):
    parts = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    want = np.zeros((4, 2, 3))
    for part, i in zip(parts, index):
        if i >= 0:
            want[i] += part
    one, two = _sums([parts, parts[:, 0]], np.array(index, np.int32))
    np.testing.assert_allclose(one, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(two, one[:, 0])


@settings(max_examples=20)
@given(st.lists(st.integers(-1, 3), min_size=9, max_size=9), st.integers(0, 3))
def test_a_groups_sum_has_the_bits_of_its_own_parts_in_order(index, group):
    index = np.array(index, np.int32)
    parts = np.random.default_rng(1).normal(size=(9, 40)).astype(np.float32)
    parts[0, 0], parts[1, 0] = -0.0, -0.0  # zeros keep the sign they have alone
    alone = np.where(index == group, index, -1).astype(np.int32)
    together, apart = _sums([parts], index)[0][group], _sums([parts], alone)[0][group]
    assert np.asarray(together).tobytes() == np.asarray(apart).tobytes()
    total = np.zeros(40, np.float32)
    for part in parts[index == group]:
        total = total + part
    assert np.asarray(together).tobytes() == total.tobytes()


@jit
def _sums(parts, index):
    return sum_by_group(parts, index, 4)


def test_sums_before_are_exclusive():
    x = np.array([[3, 1, 4], [0, 5, 9]], np.int32)
    np.testing.assert_array_equal(sums_before(jnp.asarray(x)), np.cumsum(x, 1) - x)
