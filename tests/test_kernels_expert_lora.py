"""LoRA inside an expert layer against one product per row, in both expert forms: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.expert_lora.api import expert_lora
from kernels.expert_lora.reference import expert_lora as reference
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit

ROWS, EXPERTS, SLOTS, LAYERS, D, F = 41, 5, 6, 2, 9, 13
TILE, SUBTILE = 8, 2
# Whether a and b have an expert axis: per_expert, and the two sides of shared_hidden.
FORMS = {"per_expert": (True, True), "shared_a": (False, True), "shared_b": (True, False)}


@jit
def _kernel(x, a, b, scales, expert, slots, offset, dy):
    tiles = tile_map(expert, slots + 1, groups=EXPERTS, subgroups=SLOTS + 1, tile=TILE, subtile=SUBTILE)

    def product(x, a, b):
        y = expert_lora(take_rows(x, tiles.source), a, b, scales, tiles, offset)
        return take_rows(y, tiles.place)

    y, pull = jax.vjp(product, x, a, b)
    return y, *pull(dy)


@jit
def _oracle(x, a, b, scales, expert, slots, offset, dy):
    folded = jnp.where(slots < 0, -1, offset + slots)
    every = jnp.tile(scales, LAYERS)
    y, pull = jax.vjp(lambda x, a, b: reference(x, a, b, every, expert, folded), x.astype(jnp.float32), a, b)
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
    x, dy = jnp.asarray(rng.normal(size=(ROWS, D)), dtype), rng.normal(size=(ROWS, F)).astype(np.float32)
    scales = rng.uniform(0.5, 2, SLOTS).astype(np.float32)
    offset = np.int32(SLOTS * rng.integers(LAYERS))
    return x, a, b, scales, expert.astype(np.int32), slots.astype(np.int32), offset, dy


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
    assert [g.dtype for g in got] == [jnp.float32, dtype, jnp.float32, jnp.float32]
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
        tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
    expert, slots = case[4], case[5]
    nobody = (expert < 0) | (slots < 0)
    assert not np.asarray(got[0])[nobody].any()
    assert not np.asarray(got[1], np.float32)[nobody].any()


@pytest.mark.parametrize("form", ["per_expert", "shared_a"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(form, data):
    x, a, b, scales, expert, slots, offset, dy = draw_case(data, form, 8, jnp.float32)
    slot = data.draw(st.integers(0, SLOTS - 1))
    slots[:5] = slot
    mine = slots == slot
    company = np.where(mine, expert, np.random.default_rng(0).integers(-1, EXPERTS, ROWS)).astype(np.int32)
    alone = np.where(mine, slot, -1).astype(np.int32)
    together = _kernel(x, a, b, scales, expert, slots, offset, dy)
    apart = _kernel(jnp.where(mine[:, None], x, 9.0), a, b, scales, company, alone, offset, dy)
    at = int(offset) + slot
    for t, s, index in zip(together, apart, (mine, mine, at, at), strict=True):
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])
