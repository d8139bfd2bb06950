"""LoRA-XS: a small matrix between the first singular directions of the base."""

import numpy as np

from tests.method_cases import adapted, changed, spec_of, weights


def test_the_product_is_between_the_bases_own_directions():
    spec = spec_of("lora_xs")
    adapter = changed(spec)
    for site, got in adapted(adapter, spec).items():
        w = weights(site)
        u, s, v = np.linalg.svd(w, full_matrices=False)
        left, right = u[..., :3] * s[..., None, :3], v[..., :3, :]
        sign = np.sign(np.take_along_axis(right, np.abs(right).argmax(-1)[..., None], -1))
        left, right = left * np.swapaxes(sign, -1, -2), right * sign
        want = w + 2.0 * left @ adapter[site]["between"].astype(np.float64) @ right
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_an_adapter_has_the_square_of_its_rank_for_each_matrix():
    for leaves in changed(spec_of("lora_xs", rank=5)).values():
        assert {name: x.shape[-2:] for name, x in leaves.items()} == {"between": (5, 5)}
