"""Mixed LoRA products against one product per row: values and gradients, whoever shares the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.factors import Factors
from kernels.lora_matmul.api import lora_matmul
from kernels.lora_matmul.reference import lora_matmul as reference
from kernels.rows import rows_of
from pefx.adapters.bank import padded_rank
from pefx.compiler import jit

SINGLES, TILES, TILE, SLOTS, LAYERS = 13, 8, 4, 50, 2
ROWS = SINGLES + TILES * TILE
# (in, out, padded rank): odd widths, wide to narrow and back.
SIZES = [(33, 17, 8), (7, 65, 24), (5, 3, 64)]


@jit
def _kernel(y, x, a, b, scales, slots, offset, dy):
    rows = rows_of(slots, SINGLES, TILE)
    y, pull = jax.vjp(lambda y, x, a, b: lora_matmul(y, x, Factors(a, b, scales, offset), rows), y, x, a, b)
    return y, *pull(dy)


@jit
def _oracle(y, x, a, b, scales, slots, offset, dy):
    folded = jnp.where(slots < 0, -1, offset + slots)
    every = jnp.tile(scales, a.shape[0] // scales.shape[0])
    run = lambda y, x, a, b: y + reference(x, a, b, every, folded)  # noqa: E731
    y, pull = jax.vjp(run, y, x.astype(jnp.float32), a, b)
    return y, *pull(dy)


def draw_slots(data: st.DataObject) -> np.ndarray:
    """Slot of every row: empty slots, one giant slot, all singletons, or any; some rows of nobody."""
    groups = SINGLES + TILES
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "slots"))
    kind = data.draw(st.sampled_from(["any", "giant", "singletons", "few", "nobody"]))
    if kind == "singletons":
        return spread(rng.permutation(SLOTS)[:groups])
    some = {"any": SLOTS, "few": 3, "giant": 1, "nobody": 0}[kind]
    slots = rng.choice(np.append(rng.permutation(SLOTS)[:some], -1 if kind == "nobody" else []), groups)
    return spread(np.where(rng.random(groups) < (0.0 if kind == "giant" else 0.15), -1, slots))


def spread(owners: np.ndarray) -> np.ndarray:
    """The owner of every row, from those of single rows and tiles."""
    return np.append(owners[:SINGLES], np.repeat(owners[SINGLES:], TILE)).astype(np.int32)


def draw_case(data: st.DataObject, size, dtype):
    d, f, padded = size
    rank = data.draw(st.sampled_from([r for r in range(1, 65) if padded_rank(r) == padded]), "rank")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "numbers"))
    a = rng.normal(size=(LAYERS * SLOTS, padded, d)).astype(np.float32)
    b = rng.normal(size=(LAYERS * SLOTS, padded, f)).astype(np.float32)
    a[:, rank:], b[:, rank:] = 0, 0
    x, (y, dy) = rng.normal(size=(ROWS, d)), rng.normal(size=(2, ROWS, f)).astype(np.float32)
    scales = rng.uniform(0.5, 2, SLOTS).astype(np.float32)
    offset = np.int32(SLOTS * data.draw(st.integers(0, LAYERS - 1), "layer"))
    return rank, (y, jnp.asarray(x, dtype), a, b, scales, draw_slots(data), offset, dy)


def assert_close(got, want, dtype):
    """Within rounding of the largest entry."""
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, size, data):
    rank, case = draw_case(data, size, dtype)
    got, want = _kernel(*case), _oracle(*case)
    assert [g.dtype for g in got] == [jnp.float32, jnp.float32, dtype, jnp.float32, jnp.float32]
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, dtype)
    y, _, dx, da, db = (np.asarray(g, np.float32) for g in got)
    slots, offset = case[5], int(case[6])
    np.testing.assert_array_equal(y[slots < 0], case[0][slots < 0])
    assert not dx[slots < 0].any()
    idle = np.setdiff1d(np.arange(LAYERS * SLOTS), offset + slots[slots >= 0])
    assert not da[idle].any()
    assert not db[idle].any()
    assert not da[:, rank:].any()
    assert not db[:, rank:].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(dtype, data):
    _, (y, x, a, b, scales, slots, offset, dy) = draw_case(data, SIZES[0], dtype)
    slot = data.draw(st.integers(0, SLOTS - 1))
    slots[:3], slots[SINGLES : SINGLES + 2 * TILE] = slot, slot
    mine = slots == slot
    alone = np.where(mine, slot, -1).astype(np.int32)
    # What the others hold must not matter, not even where it is no number.
    noise = jnp.where(mine[:, None], x, jnp.asarray(np.nan, dtype))
    at = int(offset) + slot
    spoiled = [np.where(np.arange(len(f)).reshape(-1, 1, 1) == at, f, np.float32(np.nan)) for f in (a, b)]
    together = _kernel(y, x, a, b, scales, slots, offset, dy)
    apart = _kernel(y, noise, *spoiled, scales, alone, offset, np.where(mine[:, None], dy, np.float32(np.nan)))
    for t, s, index in zip(together, apart, (mine, mine, mine, at, at), strict=True):
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])
