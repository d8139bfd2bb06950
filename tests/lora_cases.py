"""Cases of mixed LoRA products for the tests of every form: who owns which rows, and numbers to go with it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kernels.factors import Factors
from kernels.lora_matmul.api import lora_matmul
from kernels.lora_matmul.reference import lora_matmul as reference
from kernels.rows import Rows, rows_of


@dataclass(frozen=True)
class Layout:
    """A batch of `singles` rows and `tiles` tiles of `tile` rows, over a bank of `slots` slots and `layers` layers."""

    singles: int
    tiles: int
    tile: int
    slots: int
    layers: int = 2

    @property
    def rows(self) -> int:
        return self.singles + self.tiles * self.tile

    def rows_of(self, slots) -> Rows:
        return rows_of(slots, self.singles, self.tile)

    def spread(self, owners: np.ndarray) -> np.ndarray:
        """The owner of every row, from those of single rows and tiles."""
        return np.append(owners[: self.singles], np.repeat(owners[self.singles :], self.tile)).astype(np.int32)

    def draw_slots(self, data: st.DataObject) -> np.ndarray:
        """Slot of every row: empty slots, one giant slot, all singletons, or any; some rows of nobody."""
        groups = self.singles + self.tiles
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "slots"))
        kind = data.draw(st.sampled_from(["any", "giant", "singletons", "few", "nobody"]))
        if kind == "singletons":
            return self.spread(rng.permutation(self.slots)[:groups])
        some = {"any": self.slots, "few": 3, "giant": 1, "nobody": 0}[kind]
        slots = rng.choice(np.append(rng.permutation(self.slots)[:some], -1 if kind == "nobody" else []), groups)
        return self.spread(np.where(rng.random(groups) < (0.0 if kind == "giant" else 0.15), -1, slots))

    def draw_numbers(self, data: st.DataObject, size: tuple[int, int, int], rank: int, dtype):
        """`(y, x, a, b, scales, slots, offset, dy)` for a site of `size` (in, out, rank in the bank), in `dtype`."""
        d, f, padded = size
        rng = np.random.default_rng(data.draw(st.integers(0, 99), "numbers"))
        a = rng.normal(size=(self.layers * self.slots, padded, d)).astype(np.float32)
        b = rng.normal(size=(self.layers * self.slots, padded, f)).astype(np.float32)
        a[:, rank:], b[:, rank:] = 0, 0
        x, (y, dy) = rng.normal(size=(self.rows, d)), jnp.asarray(rng.normal(size=(2, self.rows, f)), dtype)
        scales = rng.uniform(0.5, 2, self.slots).astype(np.float32)
        offset = np.int32(self.slots * data.draw(st.integers(0, self.layers - 1), "layer"))
        return y, jnp.asarray(x, dtype), a, b, scales, self.draw_slots(data), offset, dy

    def kernel(self, y, x, a, b, scales, slots, offset, dy):
        """`lora_matmul` and its gradients of y, x, a and b."""
        rows = self.rows_of(slots)
        y, pull = jax.vjp(lambda y, x, a, b: lora_matmul(y, x, Factors(a, b, scales, offset), rows), y, x, a, b)
        return y, *pull(dy)

    def only(self, slot: int, case, dtype):
        """The case without the others: rows of nobody, and no numbers where the others' were."""
        y, x, a, b, scales, slots, offset, dy = case
        mine = slots == slot
        x, dy = (jnp.where(mine[:, None], rows, jnp.asarray(np.nan, dtype)) for rows in (x, dy))
        at = int(offset) + slot
        spoiled = [np.where(np.arange(len(f)).reshape(-1, 1, 1) == at, f, np.float32(np.nan)) for f in (a, b)]
        alone = np.where(mine, slot, -1).astype(np.int32)
        return y, x, *spoiled, scales, alone, offset, dy


def oracle(y, x, a, b, scales, slots, offset, dy):
    """The reference and its gradients of y, x, a and b."""
    folded = jnp.where(slots < 0, -1, offset + slots)
    every = jnp.tile(scales, a.shape[0] // scales.shape[0])
    run = lambda y, x, a, b: y + reference(x, a, b, every, folded)  # noqa: E731
    y, pull = jax.vjp(run, y.astype(jnp.float32), x.astype(jnp.float32), a, b)
    return y, *pull(dy.astype(jnp.float32))


def assert_close(got, want, dtype):
    """Within rounding of the largest entry."""
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def assert_like_the_reference(got, want, case, rank, dtype):
    """Values and gradients agree; rows of nobody and slots without rows are left alone exactly."""
    assert [g.dtype for g in got] == [dtype, dtype, dtype, jnp.float32, jnp.float32]
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, dtype)
    y, _, dx, da, db = (np.asarray(g, np.float32) for g in got)
    slots, offset = case[5], int(case[6])
    np.testing.assert_array_equal(y[slots < 0], np.asarray(case[0], np.float32)[slots < 0])
    assert not dx[slots < 0].any()
    idle = np.setdiff1d(np.arange(len(da)), offset + slots[slots >= 0])
    assert not da[idle].any()
    assert not db[idle].any()
    assert not da[:, rank:].any()
    assert not db[:, rank:].any()


def assert_same_bits_of(slot: int, together, apart, case):
    """A slot's rows and gradients are the same whoever else is there."""
    mine, at = case[5] == slot, int(case[6]) + slot
    for t, s, index in zip(together, apart, (mine, mine, mine, at, at), strict=True):
        np.testing.assert_array_equal(np.asarray(t)[index], np.asarray(s)[index])
