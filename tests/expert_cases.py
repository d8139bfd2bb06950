"""Cases of LoRA inside an expert layer for the tests of every form: who goes where, numbers, and the oracle."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kernels.expert_lora.api import expert_lora
from kernels.expert_lora.reference import expert_lora as reference
from kernels.factors import Factors
from kernels.grouped_matmul.reference import grouped_matmul as grouped_reference
from kernels.tiles import take_rows, tile_map

# Whether a and b are inside; a factor that experts share stays outside, and the rows come or leave shrunk.
FORMS = {"both": (True, True), "expands": (False, True), "shrinks": (True, False)}


@dataclass(frozen=True)
class Layer:
    """A projection of `size` (in, out) of the second of two layers, rows that go to it, and a bank of two layers."""

    rows: int = 41
    experts: int = 5
    slots: int = 6
    size: tuple[int, int] = (9, 13)
    layers: int = 2

    def tiles(self, expert, slots, sizes: tuple[int, int]):
        """The map of rows for (tile, subtile)."""
        pairs = {"groups": self.experts, "subgroups": self.slots + 1}
        return tile_map(expert, slots + 1, **pairs, tile=sizes[0], subtile=sizes[1])

    def project(self, x, z, w, factors, tiles):
        """`expert_lora` of rows, in their order."""
        given = None if z is None else take_rows(z, tiles.source)
        found = expert_lora(take_rows(x, tiles.source), given, w, factors, tiles, jnp.asarray(self.experts, jnp.int32))
        return tuple(None if rows is None else take_rows(rows, tiles.place) for rows in found)

    def kernel(self, sizes: tuple[int, int]):
        """A function of a case: the projection and its gradients of x, z, a and b."""

        def run(x, z, w, factors, expert, slots, cotangents):
            tiles = self.tiles(expert, slots, sizes)

            def product(x, z, a, b):
                return self.project(x, z, w, factors._replace(a=a, b=b), tiles)

            found, pull = jax.vjp(product, x, z, factors.a, factors.b)
            return *found, *pull(jax.tree.map(lambda d, y: d.astype(y.dtype), cotangents, found))

        return run

    def oracle(self, x, z, w, factors, expert, slots, cotangents):
        """The reference's."""
        folded = jnp.where(slots < 0, -1, factors.offset + slots)
        every = jnp.tile(factors.scales, self.layers)

        def product(x, z, a, b):
            base = grouped_reference(x, w[self.experts :].astype(jnp.float32), expert)
            delta, inner = reference(x, z, factors._replace(a=a, b=b, scales=every), expert, folded)
            return base + delta, (None if b is not None else inner)

        wide = [None if rows is None else rows.astype(jnp.float32) for rows in (x, z)]
        found, pull = jax.vjp(product, *wide, factors.a, factors.b)
        return *found, *pull(cotangents)

    def draw(self, data: st.DataObject, form: str, rank: int, dtype):
        """A case: `(x, z, w, factors, expert, slots, cotangents)`."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        kind = data.draw(st.sampled_from(["any", "one expert", "one slot", "one pair", "bare", "singletons"]))
        rows, (d, f) = self.rows, self.size
        expert, slots = rng.integers(-1, self.experts, rows), rng.integers(-1, self.slots, rows)
        if kind in ("one expert", "one pair"):
            expert[:] = rng.integers(self.experts)
        if kind in ("one slot", "one pair"):
            slots[:] = rng.integers(self.slots)
        if kind == "bare":
            slots[:] = -1
        if kind == "singletons":
            pair = rng.permutation(self.experts * self.slots)[:rows]
            expert[:], slots[:] = -1, -1
            expert[: len(pair)], slots[: len(pair)] = pair // self.slots, pair % self.slots
        inside = FORMS[form]
        bank = (self.layers * self.slots, self.experts, rank)
        pair = [rng.normal(size=(*bank, width)).astype(np.float32) for width in (d, f)]
        a, b = (jnp.asarray(f) if here else None for f, here in zip(pair, inside, strict=True))
        x, w, z = (jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, d), (2 * self.experts, d, f), (rows, rank)))
        dy, dz = (jnp.asarray(rng.normal(size=(rows, n)), dtype).astype(jnp.float32) for n in (f, rank))
        scales = rng.uniform(0.5, 2, self.slots).astype(np.float32)
        offset = np.int32(self.slots * rng.integers(self.layers))
        factors = Factors(a, b, jnp.asarray(scales), jnp.asarray(offset))
        given, back = (z if a is None else None), (dz if b is None else None)
        return x, given, w, factors, expert.astype(np.int32), slots.astype(np.int32), (dy, back)

    def only(self, slot: int, case):
        """The case without the others: bare rows that go elsewhere, and no numbers where the others' were."""
        x, z, w, factors, expert, slots, back = case
        mine = slots == slot
        company = np.where(mine, expert, np.random.default_rng(0).integers(-1, self.experts, self.rows))
        alone = np.where(mine, slot, -1).astype(np.int32)

        def spoiled(tree, own):
            return jax.tree.map(lambda f: jnp.where(own.reshape(-1, *(1,) * (f.ndim - 1)), f, jnp.nan), tree)

        at = int(factors.offset) + slot
        others = spoiled(factors._replace(scales=None, offset=None), np.arange(self.layers * self.slots) == at)
        others = others._replace(scales=factors.scales, offset=factors.offset)
        return *spoiled((x, z), mine), w, others, company.astype(np.int32), alone, spoiled(back, mine)

    def assert_like_the_reference(self, got, want, case, dtype):
        """Values and gradients agree; rows that go nowhere and factors without rows are left alone exactly."""
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype == (jnp.float32 if g.shape[0] == self.layers * self.slots else dtype)
            g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
            tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
            np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
        _, _, _, factors, expert, slots, _ = case
        assert not np.asarray(got[0], np.float32)[expert < 0].any()
        assert not np.asarray(got[2], np.float32)[expert < 0].any()
        used = np.zeros((self.layers * self.slots, self.experts), bool)
        adapted = (expert >= 0) & (slots >= 0)
        used[int(factors.offset) + slots[adapted], expert[adapted]] = True
        for gradient in got[4:]:
            assert gradient is None or not np.asarray(gradient)[~used].any()

    def assert_same_bits_of(self, slot: int, together, apart, case):
        """A slot's rows and gradients are the same whoever else is there."""
        mine, at = case[5] == slot, int(case[3].offset) + slot
        for t, s in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
            index = at if t.shape[0] == self.layers * self.slots else mine
            np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])
