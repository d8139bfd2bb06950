"""VeRA: one random pair for all matrices, an adapter's own numbers beside it."""

import numpy as np
import pytest

from tests.method_cases import adapted, changed, shared, spec_of, weights


def test_the_shared_pair_between_an_adapters_diagonals():
    spec = spec_of("vera")
    adapter, pair = changed(spec), shared(spec)
    for site, got in adapted(adapter, spec).items():
        d, o = (adapter[site][name].astype(np.float64)[..., 0, :] for name in ("by_rank", "by_output"))
        want = weights(site) + np.einsum("...o,...ro,...r,...ri->...oi", o, pair[site]["b"], d, pair[site]["a"])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_all_matrices_share_the_beginning_of_one_pair():
    pair = shared(spec_of("vera"))
    widest = max((own["a"] for own in pair.values()), key=lambda x: x.shape[-1]).reshape(-1, 3, 33)[0]
    for own in pair.values():
        for layer in own["a"].reshape(-1, *own["a"].shape[-2:]):
            np.testing.assert_array_equal(layer, widest[:, : layer.shape[-1]])
    stacked = np.concatenate([own["b"].ravel() for own in pair.values()])
    assert stacked.std() == pytest.approx((2 / 3) ** 0.5, rel=0.1)
