"""Starts from the base: which directions, how long, and that the base is the base before anything is learned."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pefx.adapters.applied import applied
from pefx.adapters.methods.recipe import rank_in_bank
from pefx.adapters.methods.starts import BEGINNINGS
from pefx.adapters.methods.table import Adapter, init_adapter, rate_of, scale
from pefx.adapters.shared import fresh_adapter, with_shared
from pefx.config import AdapterSpec
from pefx.config.shapes import Init
from tests.method_cases import BASE, MODEL, WITH_EXPERTS, adapted, changed, weights

RANK = 3


def spec_of(init: str) -> AdapterSpec:
    return AdapterSpec(rank=RANK, alpha=6.0, targets=WITH_EXPERTS, init=init)  # type: ignore[arg-type]


def fresh(init: str) -> Adapter:
    return fresh_adapter(with_shared(BASE, [spec_of(init)]), spec_of(init), 0)


def test_every_start_of_the_config_has_a_row():
    assert set(get_args(Init)) == {"default", *BEGINNINGS}


@pytest.mark.parametrize("init", BEGINNINGS)
def test_factors_start_from_the_matrix(init):
    for site, own in fresh(init).items():
        w = weights(site)
        u, s, v = np.linalg.svd(w, full_matrices=False)
        a, b = own["a"].astype(np.float64), own["b"].astype(np.float64)
        product = np.swapaxes(b, -1, -2) @ a
        last, first = slice(-RANK, None), slice(0, RANK)
        if init == "olora":
            q, r = np.linalg.qr(w)
            want = q[..., :RANK] @ r[..., :RANK, :]
        elif init in ("pissa", "milora"):
            part = first if init == "pissa" else last
            want = (u[..., part] * s[..., None, part]) @ v[..., part, :] / scale(spec_of(init))
        elif init == "olora_tail":
            want = u[..., last] @ v[..., last, :]
        else:
            given = {"minor": (a, v[..., last, :]), "mica": (b, np.swapaxes(u[..., last], -1, -2))}[init]
            # The same space, whatever the signs.
            np.testing.assert_allclose(np.abs(np.einsum("...rx,...rx->...r", *given)), 1, atol=1e-4)
            want = np.zeros_like(w)
        np.testing.assert_allclose(product, want, rtol=0, atol=2e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("init", BEGINNINGS)
def test_the_start_is_the_base(init):
    for site, got in adapted(fresh(init), spec_of(init)).items():
        np.testing.assert_allclose(got, weights(site), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", [name for name, start in BEGINNINGS.items() if start.shifted])
def test_what_is_served_is_the_change_from_the_start(init):
    spec, start = spec_of(init), fresh(init)
    adapter = {
        site: {n: x + changed(replace(spec, init="default"), 1)[site][n] for n, x in own.items()}
        for site, own in start.items()
    }
    factors = applied(BASE, adapter, spec)
    assert rank_in_bank(spec) == 2 * RANK
    for site, own in factors.items():
        got = np.swapaxes(own["b"], -1, -2).astype(np.float64) @ own["a"]
        new, old = (np.swapaxes(x[site]["b"], -1, -2).astype(np.float64) @ x[site]["a"] for x in (adapter, start))
        np.testing.assert_allclose(got, new - old, rtol=0, atol=1e-5 * max(1, np.abs(new).max()))
        # Rows behind the rank are those of the start, whoever the adapter is.
        np.testing.assert_allclose(own["a"][..., RANK : 2 * RANK, :], start[site]["a"], rtol=0, atol=0)


def test_what_stays_and_what_needs_the_base():
    assert [rate_of(spec_of("mica"), leaf) for leaf in ("a", "b")] == [1.0, 0.0]
    with pytest.raises(ValueError, match="init 'minor' starts from the base"):
        init_adapter(MODEL, spec_of("minor"), 0)
