"""Law 5, round trip, in storage: what is committed comes back bit for bit, from another process's point of view too."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pefx.config import AdapterSpec
from pefx.store.blob import pack, unpack
from pefx.store.catalog import Catalog, Provenance

DTYPES = {np.dtype(np.float32): np.uint32, np.dtype(np.float16): np.uint16, np.dtype(ml_dtypes.bfloat16): np.uint16}
SITES = ("q_proj", "unembed", "experts.up_proj", "experts.down_proj")
ABOUT: Provenance = {"step": 0, "seeds": {"run": 0}, "config": {}, "data_fingerprint": "", "metrics": {}}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Fields of a spec, and an adapter of any finite bit patterns (subnormals, -0.0), any form, rank and types."""
    spec = {
        "rank": draw(st.integers(1, 4)),
        "targets": tuple(draw(st.permutations(SITES))),
        "expert_form": draw(st.sampled_from(["per_expert", "shared_hidden"])),
    }
    adapter: dict[str, dict[str, np.ndarray]] = {}
    for site in draw(st.lists(st.sampled_from(SITES), min_size=1, unique=True)):
        layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        hidden_side = "b" if site == "experts.down_proj" else "a"
        for factor in ("a", "b"):
            per_expert = site.startswith("experts.") and (spec["expert_form"] == "per_expert" or factor != hidden_side)
            shape = (layers, *((experts,) if per_expert else ()), spec["rank"], draw(st.integers(1, 5)))
            dtype = draw(st.sampled_from(list(DTYPES)))
            bits = draw(npst.arrays(DTYPES[dtype], shape))
            values = bits.view(dtype)
            with np.errstate(invalid="ignore"):  # signalling NaNs among the bit patterns
                finite = np.isfinite(values)
            adapter.setdefault(site, {})[factor] = np.where(finite, values, -np.zeros((), dtype))
    return spec, adapter


def assert_same_bits(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for site in left:
        assert left[site].keys() == right[site].keys()
        for factor in left[site]:
            here, there = left[site][factor], right[site][factor]
            assert (here.dtype, here.shape, here.tobytes()) == (there.dtype, there.shape, there.tobytes()), site


@given(adapters())
@settings(max_examples=60)
def test_pack_and_unpack(case: tuple[dict[str, Any], dict]) -> None:
    _, adapter = case
    assert_same_bits(unpack(pack(adapter)), adapter)
    assert pack(unpack(pack(adapter))) == pack(adapter)


@given(adapters())
@settings(max_examples=15)
def test_commit_and_load(case: tuple[dict[str, Any], dict]) -> None:
    fields, adapter = case
    spec = AdapterSpec(**fields)  # not in the strategy: checked construction draws random numbers of its own
    with TemporaryDirectory() as folder:
        revision = Catalog.open(folder, create=True).commit(
            "alice", adapter=adapter, spec=spec, base="sha256:0", **ABOUT
        )
        reader = Catalog.open(folder, read_only=True)
        assert reader.get("alice") == revision
        assert reader.get("alice").spec == spec
        assert_same_bits(reader.load(reader.get("alice")), adapter)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_signed_zero_and_extremes(tmp_path: Path, dtype: np.dtype) -> None:
    limits = ml_dtypes.finfo(dtype)
    values = np.array([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal], dtype)
    adapter = {"q_proj": {"a": values.reshape(1, 1, 6), "b": values[::-1].reshape(1, 1, 6)}}
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    spec = AdapterSpec(rank=1, targets=("q_proj",))
    assert_same_bits(catalog.load(catalog.commit("x", adapter=adapter, spec=spec, base="sha256:0", **ABOUT)), adapter)


def test_committing_what_was_loaded_changes_nothing(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    rng = np.random.default_rng(0)
    adapter = {"q_proj": {f: rng.normal(size=(2, 1, 6)).astype(ml_dtypes.bfloat16) for f in "ab"}}
    spec = AdapterSpec(rank=1, targets=("q_proj",))
    first = catalog.commit("x", adapter=adapter, spec=spec, base="sha256:0", **ABOUT)
    assert catalog.commit("x", adapter=catalog.load(first), spec=first.spec, base=first.base, **ABOUT) == first
    copy = catalog.commit("y", adapter=catalog.load(first), spec=first.spec, base=first.base, **ABOUT)
    assert copy.content_hash == first.content_hash
