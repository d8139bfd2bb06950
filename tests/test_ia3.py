"""IA3: each output of a projection times its own number."""

import numpy as np

from tests.method_cases import adapted, changed, spec_of, weights


def test_rows_are_multiplied():
    spec = spec_of("ia3")
    adapter = changed(spec)
    for site, got in adapted(adapter, spec).items():
        np.testing.assert_allclose(got, weights(site) * np.swapaxes(adapter[site]["gains"], -1, -2), rtol=1e-6)
