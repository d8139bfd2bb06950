"""The tables of families: each names every parameter and every site of its bases, and settles every field."""

import dataclasses

import jax
import pytest
from flax import nnx

from pefx.adapters.sites import MATRICES, has_site, parameter
from pefx.config import ModelConfig
from pefx.families.tables import FAMILIES, FLOAT32_TENSORS
from pefx.model import abstract_base
from pefx.presets import PRESETS

SEVERAL = ("qwen3-4b", "qwen3-30b-a3b", "glm-4.5", "glm-5", "moonlight-16b-a3b", "deepseek-v3", "kimi-k2")


def test_every_family_is_tried() -> None:
    assert {PRESETS[name].family for name in SEVERAL} == set(FAMILIES)


@pytest.mark.parametrize("name", SEVERAL)
def test_every_parameter_and_site_has_a_tensor_of_its_own(name: str) -> None:
    config = PRESETS[name]
    tensors = FAMILIES[config.family].tensors
    for segment in abstract_base(config).segments:
        leaves = jax.tree_util.tree_flatten_with_path(segment, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
        paths = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
        assert set(paths) <= set(tensors)
        assert len({tensors[path] for path in paths}) == len(paths)
        kept = {path for path, x in paths.items() if x.dtype == "float32"}
        assert kept == {path for path in paths if tensors[path].endswith(FLOAT32_TENSORS)}
    sites = {site: parameter(site) for site in MATRICES if has_site(config, site)}
    assert sites.pop("unembed") is None
    assert set(sites.values()) <= set(tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_table_settles_fields_that_exist_once(name: str) -> None:
    family = FAMILIES[name]
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(family.fields) | set(family.implied) <= fields
    assert not set(family.fields) & set(family.implied)
    written = [theirs.name for theirs in family.fields.values()]
    assert len(written) == len(set(written))
    assert not set(written) & set(family.fixed)
