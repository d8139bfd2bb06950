"""The fused expert layer against one product per row, and bit for bit against the tiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.expert_lora.api import expert_lora
from kernels.expert_mlp.api import expert_mlp
from kernels.expert_mlp.reference import expert_mlp as reference
from kernels.expert_mlp.xla import SITES, Matrices, Sites
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.tiles import take_rows, tile_map
from kernels.windows import windows
from pefx.compiler import jit

TO_THE_BIT = True

ROWS, EXPERTS, SLOTS, D, F, RANK = 41, 5, 4, 9, 13, 8
WIDTHS = {"gate": (D, F), "up": (D, F), "down": (F, D)}


def draw_case(data: st.DataObject, dtype, sites=SITES):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["any", "one pair", "bare", "nobody"]))
    expert, slots = rng.integers(-1, EXPERTS, ROWS), rng.integers(-1, SLOTS, ROWS)
    if kind == "one pair":
        expert[:], slots[:] = rng.integers(EXPERTS), rng.integers(SLOTS)
    slots = np.full(ROWS, -1) if kind == "bare" else slots
    expert = np.full(ROWS, -1) if kind == "nobody" else expert
    w = {name: jnp.asarray(rng.normal(size=(2 * EXPERTS, *WIDTHS[name])) * 0.5, dtype) for name in SITES}
    pairs = {
        name: tuple(
            jnp.asarray(rng.normal(size=(SLOTS, EXPERTS, RANK, width)) * 0.5, jnp.float32) for width in WIDTHS[name]
        )
        for name in sites
    }
    x, dy = (jnp.asarray(rng.normal(size=(ROWS, D)), dtype) for _ in range(2))
    scales = jnp.asarray(rng.uniform(0.5, 2, SLOTS), jnp.float32)
    return x, w, pairs, scales, expert.astype(np.int32), slots.astype(np.int32), dy


def _factors(pairs, scales):
    return {name: Factors(a, b, scales, jnp.asarray(0, jnp.int32)) for name, (a, b) in pairs.items()}


@jit
def _kernel(x, w, pairs, scales, expert, slots, dy):
    own = windows(expert, slots + 1, groups=EXPERTS, subgroups=SLOTS + 1, size=4)
    matrices = Matrices(*(w[name] for name in SITES), offset=jnp.asarray(EXPERTS, jnp.int32))

    def run(x, pairs):
        adapters = Sites(*map(_factors(pairs, scales).get, SITES))
        y, _ = expert_mlp(take_rows(x, own.source), Sites(), matrices, adapters, own)
        return take_rows(y, own.place)

    y, pull = jax.vjp(run, x, pairs)
    return y, *pull(dy)


@jit
def _oracle(x, w, pairs, scales, expert, slots, dy):
    second = {name: m[EXPERTS:].astype(jnp.float32) for name, m in w.items()}

    def run(x, pairs):
        return reference(x, second, _factors(pairs, scales), expert, slots)

    y, pull = jax.vjp(run, x.astype(jnp.float32), pairs)
    return y, *pull(dy.astype(jnp.float32))


@jit
def _tiled(x, w, pairs, scales, expert, slots, dy):
    tiles = tile_map(expert, slots + 1, groups=EXPERTS, subgroups=SLOTS + 1, tile=8, subtile=4)
    offset = jnp.asarray(EXPERTS, jnp.int32)

    def run(x, pairs):
        factors = _factors(pairs, scales)

        def project(rows, name):
            if name not in factors:
                return grouped_matmul(rows, w[name], tiles, offset)
            return expert_lora(rows, None, w[name], factors[name], tiles, offset)[0]

        rows = take_rows(x, tiles.source)
        return take_rows(project(jax.nn.silu(project(rows, "gate")) * project(rows, "up"), "down"), tiles.place)

    y, pull = jax.vjp(run, x, pairs)
    return y, *pull(dy)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=20)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_reference(dtype, data):
    case = draw_case(data, dtype)
    for g, w in zip(jax.tree.leaves(_kernel(*case)), jax.tree.leaves(_oracle(*case)), strict=True):
        g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
        tolerance = 2e-5 if dtype == jnp.float32 else 5e-2
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))


@pytest.mark.parametrize("sites", [("gate",), ("up", "down"), ()], ids=str)
@settings(max_examples=8)
@given(data=st.data())
def test_projections_without_an_adapter_are_the_bases(sites, data):
    case = draw_case(data, jnp.float32, sites)
    for g, w in zip(jax.tree.leaves(_kernel(*case)), jax.tree.leaves(_oracle(*case)), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=2e-5 * max(1.0, float(np.abs(w).max())))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_values_have_the_bits_of_the_tiled_form(dtype, data):
    case = draw_case(data, dtype)
    got, want = _kernel(*case)[0], _tiled(*case)[0]
    assert np.asarray(got, np.float32).tobytes() == np.asarray(want, np.float32).tobytes()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_slots_bits_do_not_depend_on_the_others(dtype, data):
    x, w, pairs, scales, expert, slots, dy = draw_case(data, dtype)
    slot = data.draw(st.integers(0, SLOTS - 1))
    slots[:7] = slot
    mine = slots == slot
    alone, nowhere = np.where(mine, slot, -1).astype(np.int32), np.where(mine, expert, -1).astype(np.int32)
    # What the others hold must not matter, not even where it is no number.
    own = (np.arange(SLOTS) == slot).reshape(-1, 1, 1, 1)
    spoiled = jax.tree.map(lambda f: jnp.where(own, f, jnp.nan), pairs)
    noise = [jnp.where(mine[:, None], rows, jnp.nan) for rows in (x, dy)]
    together = _kernel(x, w, pairs, scales, expert, slots, dy)
    for at in (expert, nowhere):  # in company, and with the others left out altogether
        apart = _kernel(noise[0], w, spoiled, scales, at, alone, noise[1])
        for t, s, index in zip((*together[:2], together[2]), apart, (mine, mine, slot), strict=True):
            for one, two in zip(jax.tree.leaves(t), jax.tree.leaves(s), strict=True):
                one, two = np.asarray(one, np.float32)[index], np.asarray(two, np.float32)[index]
                np.testing.assert_array_equal(one, two)
