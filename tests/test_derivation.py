"""Factors made of leaves, and gradients that come back, against numerical ones; slots of other recipes stay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.derivation import derived, pulled
from pefx.adapters.methods.table import METHODS
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec
from tests.method_cases import BASE, MODEL, WITH_EXPERTS, changed, spec_of

SIZE = 1e-2
MADE = [name for name, method in METHODS.items() if method.derive is not None]
CASES = [*((name, {}) for name in MADE), *(("tiny_lora", {"tied": tied}) for tied in (True, "all"))]


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_gradients_of_leaves_are_those_of_the_factors_they_make(name, fields):
    spec, plain = spec_of(name, rank=2, **fields), AdapterSpec(rank=4, targets=WITH_EXPERTS)
    base = with_shared(BASE, [spec])
    bank = load_adapter(empty_bank(MODEL, plain, 3, [spec]), 0, changed(plain, 1), plain)
    bank = load_adapter(bank, 1, changed(spec, 2), spec, base)
    active = bank.take(jnp.asarray([0, 1], jnp.int32))
    rng = np.random.default_rng(0)
    sums = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), active.factors)
    got = pulled(base, active, sums)
    direction = changed(spec, 3)
    made = derived(base, active)
    for site, leaves in got.items():
        # The plain slot's factors and gradients are its own.
        for leaf in ("a", "b"):
            np.testing.assert_array_equal(leaves[leaf][:, 0], sums[site][leaf][:, 0])
            np.testing.assert_array_equal(made[site][leaf][:, 0], active.factors[site][leaf][:, 0])
        if site not in direction:
            continue
        # By differences, along one direction; DoRA's norms are constants, so that a and b stay.
        steps = {leaf: fitted(x, active.factors[site][leaf]) for leaf, x in direction[site].items() if leaf not in "ab"}
        slopes = [made_along(base, active, site, steps, sign * SIZE, sums) for sign in (1, -1)]
        found = sum(float(np.sum(np.asarray(leaves[leaf])[:, 1] * step)) for leaf, step in steps.items())
        np.testing.assert_allclose(found, (slopes[0] - slopes[1]) / (2 * SIZE), rtol=2e-2, atol=1e-2)


def fitted(x: np.ndarray, like) -> np.ndarray:
    """A leaf with zeros up to the size of the bank's."""
    room = np.zeros((like.shape[0], *like.shape[2:]), np.float32)
    room[: len(x), ..., : x.shape[-2], : x.shape[-1]] = x
    return room


def made_along(base, active, site: str, steps: dict[str, np.ndarray], size: float, sums) -> float:
    """What all factors come to, weighed by `sums`, with the site's leaves of slot 1 moved."""
    moved = {
        leaf: x.at[:, 1].add(size * steps[leaf]) if leaf in steps else x for leaf, x in active.factors[site].items()
    }
    made = derived(base, replace(active, factors={**active.factors, site: moved}))
    weighed = [
        np.asarray(made[at][n], np.float64)[:, 1] * np.asarray(sums[at][n])[:, 1]
        for at in made
        for n in ("a", "b", "gains")
        if n in made[at]
    ]
    return sum(float(np.sum(x)) for x in weighed)
