"""LoRA-GA: the start along a gradient, which is taken away again; what is served is the change from it."""

import numpy as np
import pytest

from pefx.adapters.applied import as_lora
from pefx.adapters.methods.counting import parameters, stored_bytes
from pefx.adapters.methods.lora_ga import begin
from pefx.adapters.methods.recipe import rank_in_bank
from pefx.adapters.methods.table import Adapter, rate_of, scale
from pefx.adapters.shared import fresh_adapter
from pefx.errors import PefxError
from tests.method_cases import BASE, MODEL, adapted, changed, spec_of, weights

RANK = 3
SPEC = spec_of("lora_ga")
ALPHA = SPEC.alpha


def gradient(sites) -> dict[str, np.ndarray]:
    return {site: np.random.default_rng([*site.encode()]).normal(size=weights(site).shape) for site in sites}


def fresh() -> Adapter:
    return fresh_adapter(BASE, SPEC, 0, lambda sites: {s: x.astype(np.float32) for s, x in gradient(sites).items()})


def test_it_starts_along_the_gradient():
    """Algorithm 1: A of the first r right directions, B of the next r left ones, both out^1/4 / gamma^1/2 long."""
    for site, own in fresh().items():
        g = gradient([site])[site]
        u, _, v = np.linalg.svd(g, full_matrices=False)
        length = g.shape[-2] ** 0.25 / 16**0.5
        for name, want in (("a", v[..., :RANK, :]), ("b", np.swapaxes(u[..., RANK : 2 * RANK], -1, -2))):
            np.testing.assert_allclose(np.linalg.norm(own[name], axis=-1), length, rtol=1e-5)
            np.testing.assert_allclose(np.abs((own[name] / length * want).sum(-1)), 1, atol=1e-3)
            np.testing.assert_array_equal(own[name], own[f"{name}0"])


def test_the_start_is_the_base():
    for site, got in adapted(fresh(), SPEC).items():
        np.testing.assert_allclose(got, weights(site), rtol=0, atol=1e-5)


def test_what_is_served_is_the_change_from_the_start():
    adapter = changed(SPEC)
    assert scale(SPEC) == ALPHA / RANK**0.5
    for site, got in adapted(adapter, SPEC).items():
        own = {name: x.astype(np.float64) for name, x in adapter[site].items()}
        change = np.swapaxes(own["b"], -1, -2) @ own["a"] - np.swapaxes(own["b0"], -1, -2) @ own["a0"]
        np.testing.assert_allclose(got, weights(site) + scale(SPEC) * change, rtol=0, atol=1e-5)
    factors, plain = as_lora(BASE, adapter, SPEC)
    assert (plain.method, plain.rank, rank_in_bank(SPEC)) == ("lora", 2 * RANK, 2 * RANK)
    for site, got in adapted(factors, plain).items():
        np.testing.assert_allclose(got, adapted(adapter, SPEC)[site], rtol=0, atol=1e-5)


def test_the_start_stays_as_it_is():
    assert [rate_of(SPEC, leaf) for leaf in ("a", "b", "a0", "b0")] == [1, 1, 0, 0]
    plain = spec_of("lora")
    assert parameters(MODEL, SPEC) == parameters(MODEL, plain)
    assert stored_bytes(MODEL, SPEC) == 2 * stored_bytes(MODEL, plain)


def test_what_it_cannot_start_from_is_named():
    with pytest.raises(ValueError, match="method 'lora_ga' starts from a gradient, which is not given"):
        fresh_adapter(BASE, SPEC, 0)
    with pytest.raises(PefxError, match=r"rank 4 is above half the size of 'q_proj', 9 x 7: .* at most 7"):
        begin("q_proj", np.ones((2, 9, 7), np.float32), 4)
    with pytest.raises(PefxError, match="the first gradient at 'q_proj' is not finite"):
        begin("q_proj", np.full((2, 9, 7), np.nan, np.float32), 2)


def test_an_expert_that_no_token_reached_starts_somewhere():
    found = begin("experts.up_proj", np.zeros((1, 2, 9, 7), np.float32), 2)
    assert all(np.isfinite(x).all() for x in found.values())
