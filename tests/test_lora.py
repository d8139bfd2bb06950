"""LoRA and its kin: a product of two factors, scaled."""

import numpy as np
import pytest

from pefx.adapters.methods.table import rate_of
from tests.method_cases import adapted, changed, spec_of, weights


@pytest.mark.parametrize(("method", "scale"), [("lora", 2.0), ("rslora", 6 / 3**0.5), ("lora_plus", 2.0)])
def test_the_product_is_scaled(method, scale):
    spec = spec_of(method)
    adapter = changed(spec)
    for site, got in adapted(adapter, spec).items():
        a, b = (adapter[site][name].astype(np.float64) for name in ("a", "b"))
        want = weights(site) + scale * np.einsum("...ri,...ro->...oi", a, b)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_what_learns_how_fast():
    assert [rate_of(spec_of("lora_plus"), leaf) for leaf in ("a", "b", "gains")] == [1.0, 16.0, 0.0]
    assert [rate_of(spec_of("lora", frozen="a"), leaf) for leaf in ("a", "b")] == [0.0, 1.0]
