"""DoRA: rows of the adapted matrix have the lengths that its magnitudes say, and the direction of base and product."""

import numpy as np

from pefx.adapters.methods.table import init_adapter
from tests.method_cases import MODEL, adapted, changed, spec_of, weights

SPEC = spec_of("dora")


def test_rows_have_their_magnitudes_and_the_direction_of_the_sum():
    adapter = changed(SPEC)
    for site, got in adapted(adapter, SPEC).items():
        w, own = weights(site), {name: x.astype(np.float64) for name, x in adapter[site].items()}
        total = w + 2.0 * np.swapaxes(own["b"], -1, -2) @ own["a"]
        length = own["magnitude"][:, 0] * np.linalg.norm(w, axis=-1)
        want = total / np.linalg.norm(total, axis=-1, keepdims=True) * length[..., None]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_fresh_one_is_the_base():
    for site, got in adapted(init_adapter(MODEL, SPEC, 0), SPEC).items():
        np.testing.assert_array_equal(got, weights(site))
