"""LoRA inside an expert layer against one product per row, in both expert forms: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.expert_lora.api import expert_lora
from kernels.expert_lora.block_sizes import block_sizes
from kernels.expert_lora.reference import expert_lora as reference
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.grouped_matmul.reference import grouped_matmul as grouped_reference
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit

ROWS, EXPERTS, SLOTS, LAYERS, D, F = 41, 5, 6, 2, 9, 13
TILE, SUBTILE = 8, 2
# Whether a and b have an expert axis: per_expert, and the two sides of shared_hidden.
FORMS = {"per_expert": (True, True), "shared_a": (False, True), "shared_b": (True, False)}


@jit
def _kernel(x, w, factors, expert, slots, dy):
    tiles = tile_map(expert, slots + 1, groups=EXPERTS, subgroups=SLOTS + 1, tile=TILE, subtile=SUBTILE)

    def product(x, a, b):
        offset = jnp.asarray(EXPERTS, jnp.int32)  # of the second of two layers
        y = expert_lora(take_rows(x, tiles.source), w, factors._replace(a=a, b=b), tiles, offset)
        return take_rows(y, tiles.place)

    y, pull = jax.vjp(product, x, factors.a, factors.b)
    return y, *pull(dy.astype(y.dtype))


@jit
def _oracle(x, w, factors, expert, slots, dy):
    folded = jnp.where(slots < 0, -1, factors.offset + slots)
    every = jnp.tile(factors.scales, LAYERS)

    def product(x, a, b):
        base = grouped_reference(x, w[EXPERTS:].astype(jnp.float32), expert)
        return base + reference(x, a, b, every, expert, folded)

    y, pull = jax.vjp(product, x.astype(jnp.float32), factors.a, factors.b)
    return y, *pull(dy)


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
    split_a, split_b = FORMS[form]
    a = rng.normal(size=(LAYERS * SLOTS, *((EXPERTS,) if split_a else ()), rank, D)).astype(np.float32)
    b = rng.normal(size=(LAYERS * SLOTS, *((EXPERTS,) if split_b else ()), rank, F)).astype(np.float32)
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((ROWS, D), (2 * EXPERTS, D, F)))
    dy = jnp.asarray(rng.normal(size=(ROWS, F)), dtype).astype(jnp.float32)
    scales = rng.uniform(0.5, 2, SLOTS).astype(np.float32)
    offset = np.int32(SLOTS * rng.integers(LAYERS))
    factors = Factors(*map(jnp.asarray, (a, b, scales, offset)))
    return x, w, factors, expert.astype(np.int32), slots.astype(np.int32), dy


@pytest.mark.parametrize(
    ("form", "rank", "dtype"),
    [
        ("per_expert", 8, jnp.float32),
        ("per_expert", 64, jnp.float32),
        ("per_expert", 8, jnp.bfloat16),
        ("shared_a", 8, jnp.float32),
        ("shared_b", 24, jnp.float32),
    ],
    ids=str,
)
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(form, rank, dtype, data):
    case = draw_case(data, form, rank, dtype)
    got, want = _kernel(*case), _oracle(*case)
    assert [g.dtype for g in got] == [dtype, dtype, jnp.float32, jnp.float32]
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
        tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
    nowhere = case[3] < 0
    assert not np.asarray(got[0], np.float32)[nowhere].any()
    assert not np.asarray(got[1], np.float32)[nowhere].any()


@jit
def _bare(x, w, expert):
    tiles = tile_map(expert, groups=EXPERTS, tile=TILE)
    y = grouped_matmul(take_rows(x, tiles.source), w, tiles, jnp.asarray(EXPERTS, jnp.int32))
    return take_rows(y, tiles.place)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=10)
@given(data=st.data())
def test_rows_of_the_bare_base_keep_its_bits(dtype, data):
    case = draw_case(data, "per_expert", 8, dtype)
    x, w, _, expert, slots, _ = case
    bare = slots < 0
    got, want = np.asarray(_kernel(*case)[0], np.float32), np.asarray(_bare(x, w, expert), np.float32)
    assert got[bare].tobytes() == want[bare].tobytes()


@pytest.mark.parametrize("form", ["per_expert", "shared_a"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(form, data):
    x, w, factors, expert, slots, dy = draw_case(data, form, 8, jnp.float32)
    slot = data.draw(st.integers(0, SLOTS - 1))
    slots[:5] = slot
    mine = slots == slot
    company = np.where(mine, expert, np.random.default_rng(0).integers(-1, EXPERTS, ROWS)).astype(np.int32)
    alone = np.where(mine, slot, -1).astype(np.int32)
    at = int(factors.offset) + slot
    # What the others hold must not matter, not even where it is no number.
    own = np.arange(LAYERS * SLOTS) == at
    spoiled = [np.where(own.reshape(-1, *(1,) * (f.ndim - 1)), f, np.float32(np.nan)) for f in factors[:2]]
    together = _kernel(x, w, factors, expert, slots, dy)
    noise = jnp.where(mine[:, None], x, jnp.nan)
    others = factors._replace(a=spoiled[0], b=spoiled[1])
    apart = _kernel(noise, w, others, company, alone, jnp.where(mine[:, None], dy, jnp.nan))
    for t, s, index in zip(together, apart, (mine, mine, at, at), strict=True):
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])


def test_block_sizes_keep_within_the_rows_that_keep_their_bits():
    for singles, tokens in ((0, 64), (64, 64), (8, 72)):
        tile, subtile = block_sizes(singles, tokens)
        assert 2 <= subtile <= tile <= 32
        assert tile % subtile == 0
    assert block_sizes(64, 64) < block_sizes(0, 64)
