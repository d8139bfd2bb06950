"""LoRA inside an expert layer against one product per row, in both expert forms: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.expert_lora.api import expert_lora
from kernels.expert_lora.block_sizes import CHUNKS, DECODE, WINDOW
from kernels.expert_lora.reference import expert_lora as reference
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.grouped_matmul.reference import grouped_matmul as grouped_reference
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit

ROWS, EXPERTS, SLOTS, LAYERS, D, F = 41, 5, 6, 2, 9, 13
TILE, SUBTILE = 8, 1
# Whether a and b are inside; a factor that experts share stays outside, and the rows come or leave shrunk.
FORMS = {"both": (True, True), "expands": (False, True), "shrinks": (True, False)}


@jit
def _kernel(x, z, w, factors, expert, slots, cotangents):
    tiles = tile_map(expert, slots + 1, groups=EXPERTS, subgroups=SLOTS + 1, tile=TILE, subtile=SUBTILE)

    def product(x, z, a, b):
        offset = jnp.asarray(EXPERTS, jnp.int32)  # of the second of two layers
        given = None if z is None else take_rows(z, tiles.source)
        found = expert_lora(take_rows(x, tiles.source), given, w, factors._replace(a=a, b=b), tiles, offset)
        return tuple(None if rows is None else take_rows(rows, tiles.place) for rows in found)

    found, pull = jax.vjp(product, x, z, factors.a, factors.b)
    return *found, *pull(jax.tree.map(lambda d, y: d.astype(y.dtype), cotangents, found))


@jit
def _oracle(x, z, w, factors, expert, slots, cotangents):
    folded = jnp.where(slots < 0, -1, factors.offset + slots)
    every = jnp.tile(factors.scales, LAYERS)

    def product(x, z, a, b):
        base = grouped_reference(x, w[EXPERTS:].astype(jnp.float32), expert)
        delta, inner = reference(x, z, factors._replace(a=a, b=b, scales=every), expert, folded)
        return base + delta, (None if b is not None else inner)

    wide = [None if rows is None else rows.astype(jnp.float32) for rows in (x, z)]
    found, pull = jax.vjp(product, *wide, factors.a, factors.b)
    return *found, *pull(cotangents)


def draw_case(data: st.DataObject, form: str, rank: int, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["any", "one expert", "one slot", "one pair", "bare", "singletons"]))
    expert, slots = rng.integers(-1, EXPERTS, ROWS), rng.integers(-1, SLOTS, ROWS)
    if kind in ("one expert", "one pair"):
        expert[:] = rng.integers(EXPERTS)
    if kind in ("one slot", "one pair"):
        slots[:] = rng.integers(SLOTS)
    if kind == "bare":
        slots[:] = -1
    if kind == "singletons":
        pair = rng.permutation(EXPERTS * SLOTS)
        expert[:], slots[:] = -1, -1
        expert[: len(pair)], slots[: len(pair)] = pair // SLOTS, pair % SLOTS
    inside = FORMS[form]
    pair = [rng.normal(size=(LAYERS * SLOTS, EXPERTS, rank, width)).astype(np.float32) for width in (D, F)]
    a, b = (jnp.asarray(f) if here else None for f, here in zip(pair, inside, strict=True))
    x, w, z = (jnp.asarray(rng.normal(size=s), dtype) for s in ((ROWS, D), (2 * EXPERTS, D, F), (ROWS, rank)))
    dy, dz = (jnp.asarray(rng.normal(size=(ROWS, n)), dtype).astype(jnp.float32) for n in (F, rank))
    scales = rng.uniform(0.5, 2, SLOTS).astype(np.float32)
    offset = np.int32(SLOTS * rng.integers(LAYERS))
    factors = Factors(a, b, jnp.asarray(scales), jnp.asarray(offset))
    given, back = (z if a is None else None), (dz if b is None else None)
    return x, given, w, factors, expert.astype(np.int32), slots.astype(np.int32), (dy, back)


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
    case = draw_case(data, form, rank, dtype)
    got, want = _kernel(*case), _oracle(*case)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == (jnp.float32 if g.shape[0] == LAYERS * SLOTS else dtype)
        g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
        tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
    nowhere = case[4] < 0
    assert not np.asarray(got[0], np.float32)[nowhere].any()
    assert not np.asarray(got[2], np.float32)[nowhere].any()


@jit
def _bare(x, w, expert):
    tiles = tile_map(expert, groups=EXPERTS, tile=TILE)
    y = grouped_matmul(take_rows(x, tiles.source), w, tiles, jnp.asarray(EXPERTS, jnp.int32))
    return take_rows(y, tiles.place)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=10)
@given(data=st.data())
def test_rows_of_the_bare_base_keep_its_bits(dtype, data):
    case = draw_case(data, "both", 8, dtype)
    x, _, w, _, expert, slots, _ = case
    bare = slots < 0
    got, want = np.asarray(_kernel(*case)[0], np.float32), np.asarray(_bare(x, w, expert), np.float32)
    assert got[bare].tobytes() == want[bare].tobytes()


@pytest.mark.parametrize("form", sorted(FORMS))
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(form, data):
    x, z, w, factors, expert, slots, back = draw_case(data, form, 8, jnp.float32)
    slot = data.draw(st.integers(0, SLOTS - 1))
    slots[:5] = slot
    mine = slots == slot
    company = np.where(mine, expert, np.random.default_rng(0).integers(-1, EXPERTS, ROWS)).astype(np.int32)
    alone = np.where(mine, slot, -1).astype(np.int32)
    at = int(factors.offset) + slot

    # What the others hold must not matter, not even where it is no number.
    def spoiled(tree, own):
        return jax.tree.map(lambda f: jnp.where(own.reshape(-1, *(1,) * (f.ndim - 1)), f, jnp.nan), tree)

    together = _kernel(x, z, w, factors, expert, slots, back)
    others = spoiled(factors._replace(scales=None, offset=None), np.arange(LAYERS * SLOTS) == at)
    others = others._replace(scales=factors.scales, offset=factors.offset)
    apart = _kernel(*spoiled((x, z), mine), w, others, company, alone, spoiled(back, mine))
    for t, s in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        index = at if t.shape[0] == LAYERS * SLOTS else mine
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])


def test_block_sizes_keep_within_the_rows_that_keep_their_bits():
    for tile, subtile in (DECODE, CHUNKS):
        assert 2 <= tile <= 32
        assert tile % subtile == 0
    assert 2 <= WINDOW <= 32
