"""The first gradient of the base's matrices: against differences, alone, and the same on every mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.matrices import matrices, untied
from pefx.adapters.merge import merge
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, MeshConfig
from pefx.mesh import of_base, on_mesh, place
from pefx.training.first_gradient import first_gradient
from pefx.training.heldout import Exam, nats_per_token
from pefx.training.planner import Layout, lesson
from tests.laws.world import MODEL, PAGE, make_base

TO_THE_BIT = True
SITES = ("q_proj", "o_proj", "up_proj", "experts.gate_proj", "experts.down_proj", "unembed")
LAYOUT = Layout(shares=3, share=2 * PAGE, length=2 * PAGE, page_size=PAGE)
LESSONS = [lesson(np.random.default_rng(0).integers(0, MODEL.vocab_size, n), np.ones(n), 0) for n in (30, 20)]


def found(base, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    return first_gradient(base, LESSONS, layout, SITES)


def test_it_is_the_slope_of_the_loss():
    base = untied(make_base())
    gradient, tokens, step = found(base), sum(len(one.tokens) for one in LESSONS), 1e-3

    def loss(adapter, spec) -> float:
        return tokens * nats_per_token(merge(base, adapter, spec), None, [Exam(tuple(LESSONS), -1)], LAYOUT)[0]

    rng = np.random.default_rng(1)
    for site in SITES:
        assert gradient[site].shape == matrices(base, site).shape
        spec = AdapterSpec(rank=1, alpha=1.0, targets=(site,))
        adapter = init_adapter(MODEL, spec, 0)
        a, b = (rng.normal(size=x.shape).astype(np.float32) for x in (adapter[site]["a"], adapter[site]["b"]))
        ends = [loss({site: {"a": a, "b": np.float32(sign * step) * b}}, spec) for sign in (1, -1)]
        want = float(np.sum(gradient[site].astype(np.float64) * (np.swapaxes(b, -1, -2) @ a)))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(want, rel=0.05, abs=0.05), site


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
