"""Between catalog and Hugging Face: what goes out comes back the same, and what does not fit is refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from pefx.adapters.applied import applied
from pefx.adapters.merge import merge
from pefx.adapters.methods.table import init_adapter, scale
from pefx.adapters.peft import read_peft
from pefx.adapters.peft_writing import write_peft
from pefx.adapters.shared import fresh_adapter, with_shared
from pefx.cli import main
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.exchange import Base, export_many, export_peft, import_peft, merge_revision
from pefx.loading import load_base
from pefx.safetensors_files import read_headers
from pefx.store.catalog import Catalog
from tests.peft_cases import random_factors, sites_of

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(GOLDENS / "odd")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(tmp_path / "catalog", create=True)


def spec_of(base: Base, **changes: Any) -> AdapterSpec:
    fields: dict[str, Any] = {"rank": 3, "alpha": 5.0, "targets": tuple(sites_of(base.config))}
    return AdapterSpec(**{**fields, **changes})


def commit(catalog: Catalog, policy: str, base: Base, dtype: Any = np.float32, **changes: Any) -> str:
    spec = spec_of(base, **changes)
    revision = catalog.commit(
        policy,
        adapter=random_factors(base.config, spec, 1, dtype),
        spec=spec,
        base=base.digest,
        step=1,
        seeds={"run": 0},
        config={},
        data_fingerprint="",
        metrics={},
    )
    return revision.content_hash


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("layout", "form"), [("fused", "per_expert"), ("per_expert", "per_expert"), ("shared_outer", "shared_hidden")]
)
def test_out_and_in_is_the_same_revision(catalog: Catalog, base: Base, tmp_path: Path, layout, form, dtype) -> None:
    content = commit(catalog, "ann", base, dtype, expert_form=form)
    export_peft(catalog, catalog.get("ann"), base, tmp_path / "out", layout)
    done = import_peft(catalog, tmp_path / "out", base, name="bob")
    assert (done.revisions, done.refused) == (["bob@1"], [])
    assert catalog.get("bob").content_hash == content
    again = import_peft(catalog, tmp_path / "out", base, name="bob")
    assert again.revisions == ["bob@1"]


def test_a_folder_goes_in_and_out_and_what_does_not_fit_is_told(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    for name in ("everything", "attention", "unembed", "latent"):  # the last is of another base
        shutil.copytree(GOLDENS / "adapters" / name, tmp_path / "in" / "team" / name)
    broken = tmp_path / "in" / "team" / "broken"
    shutil.copytree(GOLDENS / "adapters" / "attention", broken)
    file = broken / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    done = import_peft(catalog, tmp_path / "in", base, prefix="x/", owner="ann", tags=("peft",))
    assert done.revisions == ["x/team/attention@1", "x/team/everything@1", "x/team/unembed@1"]
    assert len(done.refused) == 2
    assert all(any(name in told for told in done.refused) for name in ("broken", "latent"))
    assert [policy.name for policy in catalog.search(tag="peft", owner="ann")] == [
        "x/team/attention", "x/team/everything", "x/team/unembed",
    ]  # fmt: skip
    revision = catalog.get("x/team/everything")
    assert revision.config["imported"]["peft_type"] == "LORA"
    assert (revision.base, revision.spec.method) == (base.digest, "rslora")
    out = export_many(catalog, "x/team/", base, tmp_path / "out")
    assert (len(out.revisions), out.refused) == (3, [])
    back = Catalog.open(tmp_path / "other", create=True)
    assert import_peft(back, tmp_path / "out", base).revisions == done.revisions
    for key in done.revisions:
        name = key.split("@")[0]
        assert back.get(name).content_hash == catalog.get(name).content_hash


def test_what_there_is_not_is_told(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    commit(catalog, "ann", base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PefxError, match=r"holds no adapter_config\.json"):
        import_peft(catalog, tmp_path / "empty", base)
    for name in ("a", "b"):
        shutil.copytree(GOLDENS / "adapters" / "attention", tmp_path / "two" / name)
    with pytest.raises(PefxError, match="holds 2 adapters, which cannot all be 'x'"):
        import_peft(catalog, tmp_path / "two", base, name="x")
    with pytest.raises(PefxError, match="holds no policy that starts with 'z'"):
        export_many(catalog, "z", base, tmp_path / "out")
    with pytest.raises(PefxError, match="no such directory"):
        Base(tmp_path / "nowhere")
    other = Base(GOLDENS / "qwen3")
    for call in (export_peft, merge_revision):
        with pytest.raises(PefxError) as caught:
            call(catalog, catalog.get("ann"), other, tmp_path / "out")
        assert caught.value.kind == "wrong_base"
    assert not (tmp_path / "out").exists()


def test_names_from_paths_are_checked(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "adapters" / "attention", tmp_path / "in" / "a b")
    done = import_peft(catalog, tmp_path / "in", base)
    assert done.revisions == []
    assert "policy name 'a b' is not allowed" in done.refused[0]


def test_nan_and_another_spec_are_refused(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    spec = spec_of(base)
    good = random_factors(base.config, spec, 2)
    write_peft(tmp_path / "good", good, spec, base.config)
    import_peft(catalog, tmp_path / "good", base, name="ann")
    write_peft(
        tmp_path / "wider", random_factors(base.config, spec_of(base, rank=4), 2), spec_of(base, rank=4), base.config
    )
    assert "'rank' is 3, not 4" in import_peft(catalog, tmp_path / "wider", base, name="ann").refused[0]
    file = tmp_path / "good" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2:] = b"\xc0\x7f"  # the upper half of a float32 that is not a number
    file.write_bytes(data)
    assert "NaN" in import_peft(catalog, tmp_path / "good", base, name="bob").refused[0]
    assert [policy.name for policy in catalog.search()] == ["ann"]


def test_the_commands(catalog: Catalog, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, odd = str(tmp_path / "catalog"), ["--base", str(GOLDENS / "odd")]
    adapter = str(GOLDENS / "adapters" / "everything")
    assert main(["catalog", "import-peft", place, adapter, *odd, "--name", "team/ann", "--tags", "a", "b"]) == 0
    assert capsys.readouterr().out == "committed team/ann@1\n"
    assert main(["catalog", "export-peft", place, "team/ann@1", str(tmp_path / "one"), *odd]) == 0
    assert main(["catalog", "export-peft", place, "-", str(tmp_path / "all"), *odd, "--prefix", "team/"]) == 0
    one, all_ = tmp_path / "one", tmp_path / "all" / "team" / "ann"
    assert all((one / file.name).read_bytes() == file.read_bytes() for file in all_.iterdir())
    assert main(["catalog", "merge", place, "team/ann", str(tmp_path / "merged"), *odd]) == 0
    told = json.loads((tmp_path / "merged" / "merged_adapter.json").read_text())
    assert told["provenance"]["revision"] == "team/ann@1"
    _, digest = load_base(tmp_path / "merged", "float32")
    assert digest != base.digest
    assert read_headers(tmp_path / "merged").keys() == read_headers(GOLDENS / "odd").keys()
    capsys.readouterr()
    assert main(["catalog", "merge", place, "team/ann", str(tmp_path / "merged"), *odd]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["catalog", "export-peft", place, "-", str(tmp_path / "x"), *odd]) == 2
    assert main(["catalog", "export-peft", place, "team/ann", str(tmp_path / "x"), "--base", str(tmp_path)]) == 2
    assert main(["catalog", "import-peft", place, str(GOLDENS / "adapters" / "latent"), *odd]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec("vera", 4, targets=("q_proj", "experts.up_proj", "experts.gate_proj", "experts.down_proj")),
        AdapterSpec("tiny_lora", 2, targets=("v_proj", "down_proj"), units=3, tied=True),
        AdapterSpec("tiny_lora", 2, targets=("v_proj", "experts.up_proj"), units=1, tied="all"),
        AdapterSpec("lora_ga", 3, 5.0, ("o_proj",)),
        AdapterSpec("rslora", 3, 5.0, ("o_proj",), init="pissa"),
    ],
    ids=["vera", "tiny_lora", "tied", "lora_ga", "pissa"],
)
def test_other_methods_go_out_as_the_factors_they_come_to(catalog: Catalog, base: Base, tmp_path: Path, spec) -> None:
    held = with_shared(base.weights, [spec])
    start = fresh_adapter(held, spec, 0) if spec.init != "default" else init_adapter(base.config, spec, 0)
    rng = np.random.default_rng(0)
    adapter = {
        site: {leaf: x + rng.normal(size=x.shape).astype(np.float32) for leaf, x in own.items()}
        for site, own in start.items()
    }
    facts = {"step": 1, "seeds": {"run": 0}, "config": {}, "data_fingerprint": "", "metrics": {}}
    revision = catalog.commit("ann", adapter=adapter, spec=spec, base=base.digest, **facts)
    export_peft(catalog, revision, base, tmp_path / "out")
    merge_revision(catalog, revision, base, tmp_path / "merged")
    got, told = read_peft(tmp_path / "out", base.config)
    want = applied(base.weights, adapter, spec)
    assert told.method == "lora"
    assert set(got) == set(want)
    for site, own in want.items():
        products = [
            factor * np.einsum("...ri,...ro->...oi", *(x[name].astype(np.float64) for name in ("a", "b")))
            for x, factor in ((got[site], scale(told)), (own, scale(spec)))
        ]
        np.testing.assert_allclose(products[0], products[1], rtol=0, atol=1e-5 * max(1, np.abs(products[1]).max()))
    whole = merge(base.weights, adapter, spec)
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(load_base(tmp_path / "merged")[0]), strict=True):
        np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=1e-5)


def test_what_has_gains_does_not_go_out(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    spec = AdapterSpec("ia3", targets=("k_proj",))
    facts = {"step": 1, "seeds": {"run": 0}, "config": {}, "data_fingerprint": "", "metrics": {}}
    adapter = init_adapter(base.config, spec, 0)
    revision = catalog.commit("ann", adapter=adapter, spec=spec, base=base.digest, **facts)
    with pytest.raises(PefxError, match="method 'ia3', init 'default', is no pair of factors"):
        export_peft(catalog, revision, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memories_are_neither_exported_nor_merged(catalog: Catalog, base: Base, tmp_path: Path) -> None:
    spec = AdapterSpec("delta_mem", 8, targets=("memory",))
    adapter = fresh_adapter(base.weights, spec, 0)
    about: dict[str, Any] = {"step": 0, "seeds": {}, "config": {}, "data_fingerprint": "", "metrics": {}}
    catalog.commit("mem", adapter=adapter, spec=spec, base=base.digest, **about)
    state = {"memory": {"state": np.zeros((base.config.layers, 8, 8), np.float32)}}
    over = replace(spec, method="delta_state", over="mem@1")
    catalog.commit("notes", adapter=state, spec=over, base=base.digest, **about)
    for policy in ("mem", "notes"):
        for call in (export_peft, merge_revision):
            with pytest.raises(PefxError, match="a memory cannot be merged or exported"):
                call(catalog, catalog.get(policy), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
