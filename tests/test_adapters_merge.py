"""Merging: the merged base computes what base and adapter do, at every kind of site, and unmerging gives it back."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.merge import merge, unmerge
from pefx.adapters.methods.table import METHODS, Adapter
from pefx.adapters.shared import fresh_adapter, with_shared
from pefx.adapters.sites import MATRICES
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.steps import score
from tests.method_cases import BASE, changed, spec_of
from tests.model_small import SPEC, make_base, random_adapter, random_tokens, train_batch, variant

HEADS = variant(tied_embedding=False, shared_experts=1, layers=2)
LATENT = replace(
    HEADS, query_rank=11, kv_rank=20, nope_head_size=7, rope_head_size=4, value_head_size=5, dense_layers=(0, 1)
)
BATCH = train_batch(random_tokens([30, 12]), [0, 0])
TOLERANCE = 1e-4  # nats, of log-probabilities whose adapter moves them by about one


@pytest.mark.parametrize(
    ("config", "form"),
    [(HEADS, "per_expert"), (HEADS, "shared_hidden"), (LATENT, "per_expert")],
    ids=["heads", "shared_hidden", "latent"],
)
def test_a_merged_base_computes_what_base_and_adapter_do(config: ModelConfig, form):
    base, spec = make_base(config), replace(SPEC, expert_form=form)
    adapter = random_adapter(config, spec, 1)
    bank = load_adapter(empty_bank(config, spec, 1), 0, adapter, spec)
    whole = merge(base, adapter, spec)
    want, got, bare = (np.asarray(score(*x, BATCH)) for x in ((base, bank), (whole, None), (base, None)))
    assert np.abs(want - bare).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    back = unmerge(whole, adapter, spec)
    for before, after in zip(jax.tree.leaves(base), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * max(1, np.abs(before).max()))


OTHERS = [n for n in METHODS if n not in ("lora", "rslora", "lora_plus", "delta_mem", "delta_state")]


@pytest.mark.parametrize("method", OTHERS)
def test_a_merged_base_computes_what_base_and_adapter_of_any_method_do(method):
    spec = spec_of(method)
    adapter = changed(spec)
    held = with_shared(BASE, [spec])
    bank = load_adapter(empty_bank(BASE.config, replace(spec, method="lora"), 1, [spec]), 0, adapter, spec, held)
    cases = ((BASE, bank), (merge(BASE, adapter, spec), None), (BASE, None))
    want, got, bare = (np.asarray(score(*case, BATCH)) for case in cases)
    assert np.abs(want - bare).max() > 0.01
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    with pytest.raises(PefxError, match=f"an adapter of method '{method}', init 'default', is no pair"):
        unmerge(BASE, adapter, spec)


@pytest.mark.parametrize("site", MATRICES)
def test_a_site_changes_its_own_parameter_alone(site: str):
    config = LATENT if site in ("q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj") else HEADS
    spec = AdapterSpec(rank=2, targets=(site,))
    base = make_base(config)
    whole = merge(base, random_adapter(config, spec, 0), spec)
    changed = [
        jax.tree_util.keystr(path)
        for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(base), jax.tree.leaves(whole), strict=True)
        if not np.array_equal(before, after)
    ]
    assert changed
    assert all(site.split(".")[-1] in name for name in changed), changed


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (HEADS, lambda a: a.pop("k_proj"), "lacks site 'k_proj'"),
        (HEADS, lambda a: a.update(q_a_proj=a["k_proj"]), "has site 'q_a_proj'"),
        (HEADS, lambda a: a["k_proj"].update(a=a["k_proj"]["a"][:, :1]), r"k_proj.a has shape"),
        (variant(), lambda a: None, "tied to the embedding"),
    ],
    ids=["missing", "foreign", "shape", "tied"],
)
def test_what_does_not_fit_is_refused(config: ModelConfig, change, match: str):
    adapter: Adapter = random_adapter(config, SPEC, 0)
    change(adapter)
    with pytest.raises(PefxError, match=match) as caught:
        merge(make_base(config), adapter, SPEC)
    assert caught.value.kind == "bad_adapter"


def test_a_memory_is_not_merged():
    spec = AdapterSpec("delta_mem", 8, targets=("memory",))
    with pytest.raises(PefxError, match="method 'delta_mem' is no part of a base's weights: a memory cannot be merged"):
        merge(BASE, fresh_adapter(BASE, spec, 1), spec)
