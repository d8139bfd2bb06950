"""TinyLoRA: a few numbers for each matrix, of fixed random matrices between the base's own directions."""

import numpy as np

from tests.method_cases import adapted, changed, shared, spec_of, weights


def test_the_small_matrix_is_a_sum_of_fixed_ones():
    spec = spec_of("tiny_lora", rank=2, units=3)
    adapter, held = changed(spec), shared(spec)
    for site, got in adapted(adapter, spec).items():
        w, own = weights(site), held[site]
        u, s, v = np.linalg.svd(w, full_matrices=False)
        np.testing.assert_allclose(np.linalg.norm(own["a"], axis=-1) ** 2, s[..., :2], rtol=1e-4)
        np.testing.assert_allclose(
            np.swapaxes(own["b"], -1, -2) @ own["a"], (u[..., :2] * s[..., None, :2]) @ v[..., :2, :], atol=1e-5
        )
        small = np.einsum("...u,...uk->...k", adapter[site]["vector"][..., 0, :].astype(np.float64), own["projections"])
        small = small.reshape(*small.shape[:-1], 2, 2)
        np.testing.assert_allclose(got, w + np.swapaxes(own["b"], -1, -2) @ small @ own["a"], rtol=0, atol=1e-5)


def test_tied_layers_share_one_vector():
    free, tied = (spec_of("tiny_lora", rank=2, units=1, tied=tied) for tied in (False, True))
    adapter = changed(tied)
    assert {x.shape[0] for leaves in adapter.values() for x in leaves.values()} == {1}
    spread = {
        site: {"vector": np.repeat(own["vector"], weights(site).shape[0], axis=0)} for site, own in adapter.items()
    }
    one, other = adapted(adapter, tied), adapted(spread, free)
    for site in one:
        np.testing.assert_array_equal(one[site], other[site])


def test_an_adapter_has_as_many_numbers_as_units():
    assert {x.shape[-2:] for leaves in changed(spec_of("tiny_lora", units=1)).values() for x in leaves.values()} == {
        (1, 1)
    }
