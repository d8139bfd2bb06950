"""What methods are made of: how leaves start, how products are scaled, which sites have no gains."""

import numpy as np

from pefx.adapters.methods.method import ONE, ZERO, by_rank, constant, rows_only, uniform, unscaled
from pefx.adapters.sites import SITES


def test_starts():
    rng = np.random.default_rng(0)
    for start, value in ((ZERO, 0), (ONE, 1), (constant(0.1), np.float32(0.1))):
        found = start(rng, (2, 3))
        assert found.dtype == np.float32
        assert (found == value).all()
    drawn = uniform(rng, (50, 16))
    assert 0.9 * 0.25 < np.abs(drawn).max() <= 0.25


def test_scales():
    assert (by_rank(8.0, 4), unscaled(8.0, 4)) == (2.0, 1.0)


def test_sites_without_gains():
    without = {name for name, site in SITES.items() if rows_only(site)}
    assert without == {"experts.gate_proj", "experts.up_proj", "experts.down_proj", "kv_b_proj", "memory"}
