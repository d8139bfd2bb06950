"""The first gradient of the base's matrices: against differences, alone, and the same on every mesh."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.matrices import matrices, untied
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, MeshConfig
from pefx.mesh import of_base, on_mesh, place
from pefx.optim import init_opt
from pefx.steps import TrainHyper, train_step
from pefx.training.first_gradient import first_gradient
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, lay_out, lesson
from tests.laws.world import MODEL, PAGE, make_base

TO_THE_BIT = True
SITES = ("q_proj", "o_proj", "up_proj", "experts.gate_proj", "experts.down_proj", "unembed")
LAYOUT = Layout(shares=3, share=2 * PAGE, length=2 * PAGE, page_size=PAGE)
LESSONS = [lesson(np.random.default_rng(0).integers(0, MODEL.vocab_size, n), np.ones(n), 0) for n in (30, 20)]


def found(base, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    return first_gradient(base, LESSONS, layout, SITES)


def gradient_norm(base, adapter, spec: AdapterSpec) -> float:
    """Of the mean loss, by an adapter's factors: through the step that trains adapters."""
    bank = load_adapter(empty_bank(base.config, spec, 3), 0, adapter, spec)
    numbers: dict[str, Any] = {
        name: np.ones(3, np.float32) for name in ("learning_rate", "weight_decay", "clip", "epsilon")
    }
    numbers |= {name: np.full(3, 0.5, np.float32) for name in ("beta1", "beta2")}
    hyper = TrainHyper(slots=np.asarray([0, 3, 3], np.int32), apply=np.asarray([True, False, False]), **numbers)
    batch = device_batch(lay_out([[LESSONS]], LAYOUT))
    return float(train_step(base, bank, init_opt(bank, accumulate=False), batch, hyper)[2].gradient_norm[0])


@pytest.mark.parametrize("site", SITES)
def test_it_is_what_adapters_are_trained_by(site):
    """Where b is zero, the gradient of b is a times that of the matrix, and a has none."""
    base, tokens = untied(make_base()), sum(len(one.tokens) for one in LESSONS)
    gradient = found(base)[site]
    assert gradient.shape == matrices(base, site).shape
    spec = AdapterSpec(rank=3, alpha=3.0, targets=(site,))
    adapter = init_adapter(MODEL, spec, 0)
    a = adapter[site]["a"].astype(np.float64)
    want = np.linalg.norm(gradient.astype(np.float64) @ np.swapaxes(a, -1, -2)) / tokens
    assert gradient_norm(base, adapter, spec) == pytest.approx(want, rel=1e-4)


def test_of_a_tied_unembedding_it_is_of_the_unembedding_only():
    base = make_base()
    assert base.unembed is None
    one, other = found(base)["unembed"], found(untied(base))["unembed"]
    np.testing.assert_array_equal(one, other)


def test_it_depends_on_no_other_user():
    base = make_base()
    one, other = found(base), found(base, replace(LAYOUT, shares=5))
    for site in SITES:
        np.testing.assert_array_equal(one[site], other[site])


@pytest.mark.parametrize(
    "mesh", [MeshConfig(2), MeshConfig(1, 2), MeshConfig(1, 1, 2)], ids=["data", "expert", "model"]
)
def test_on_a_mesh_it_is_the_same(mesh: MeshConfig):
    whole = found(make_base())
    with on_mesh(mesh):
        parts = found(place(of_base, make_base()), replace(LAYOUT, shards=mesh.rows))
    for site in SITES:
        if mesh.model == 1:
            np.testing.assert_array_equal(whole[site], parts[site], err_msg=site)
        else:
            np.testing.assert_allclose(whole[site], parts[site], rtol=0, atol=1e-5 * np.abs(whole[site]).max())


def test_a_base_of_half_precision_has_one():
    half = found(make_base("bfloat16"))
    assert {x.dtype for x in half.values()} == {np.dtype(np.float32)}
    assert jax.tree.all({site: bool(jnp.isfinite(x).all()) for site, x in half.items()})
