"""A merged checkpoint is the base's, with the sums of `pefx.adapters.merge` in it, to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pefx.adapters import checkpoint_merge
from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.checkpoint_merge import MERGED, merge_checkpoint
from pefx.adapters.merge import merge
from pefx.adapters.methods.table import Adapter
from pefx.adapters.peft import read_peft
from pefx.config import AdapterSpec, ExpertForm, ModelConfig
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.loading import load_base
from pefx.model import Base
from pefx.safetensors_files import read_headers
from pefx.steps import score
from tests.model_small import random_tokens, train_batch
from tests.peft_cases import random_factors, sites_of

TO_THE_BIT = True
GOLDENS = Path(__file__).parent / "goldens"
# float32 in one file; bfloat16 in several; bfloat16 with latent attention and shared experts.
BASES = ("odd", "glm", "deepseek")


def everything(config: ModelConfig, form: ExpertForm = "per_expert", rank: int = 3) -> AdapterSpec:
    sites = tuple(site for site in sites_of(config) if site != "unembed" or not config.tied_embedding)
    return AdapterSpec("rslora", rank, 0.8, sites, form)


def case(name: str, form: ExpertForm = "per_expert", rank: int = 3) -> tuple[Path, Adapter, AdapterSpec]:
    config = read_config(GOLDENS / name)
    spec = everything(config, form, rank)
    return GOLDENS / name, random_factors(config, spec, 1), spec


def same(one: Base, other: Base) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@pytest.mark.parametrize("block", [1 << 24, 300], ids=["whole", "blocks"])
@pytest.mark.parametrize(
    ("name", "form", "rank"),
    [
        ("odd", "per_expert", 16),
        ("odd", "shared_hidden", 3),
        ("glm", "per_expert", 5),
        ("deepseek", "shared_hidden", 1),
    ],
)
def test_it_is_what_a_base_in_memory_would_be(
    name: str, form, rank: int, block: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(checkpoint_merge, "BLOCK", block)
    source, adapter, spec = case(name, form, rank)
    merge_checkpoint(source, adapter, spec, tmp_path / "merged")
    base, digest = load_base(source)
    found, other = load_base(tmp_path / "merged")
    assert other != digest
    assert same(found, merge(base, adapter, spec))


def test_it_computes_what_base_and_adapter_do(tmp_path: Path) -> None:
    source = GOLDENS / "odd"
    adapter, spec = read_peft(GOLDENS / "adapters" / "everything", read_config(source))
    merge_checkpoint(source, adapter, spec, tmp_path / "merged")
    base, (whole, _) = load_base(source)[0], load_base(tmp_path / "merged")
    bank = load_adapter(empty_bank(base.config, spec, 1), 0, adapter, spec)
    batch = train_batch([x % base.config.vocab_size for x in random_tokens([30, 12])], [0, 0])
    want, got, bare = (np.asarray(score(*x, batch)) for x in ((base, bank), (whole, None), (base, None)))
    assert np.abs(want - bare).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_files_types_and_what_lies_beside_are_the_bases(name: str, tmp_path: Path) -> None:
    source, adapter, spec = case(name)
    base = tmp_path / "base"
    shutil.copytree(source, base)
    beside = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "modeling.py": "", "LICENSE": "free"}
    left = {"README.md": "of the base", "pytorch_model.bin": "other weights", ".hidden": ""}
    for file, text in (beside | left).items():
        (base / file).write_text(text)
    merge_checkpoint(base, adapter, spec, tmp_path / "merged", {"policy": "ada", "revision": 3})
    old, new = read_headers(base), read_headers(tmp_path / "merged")
    assert {k: (t.file.name, t.dtype, t.shape, t.begin) for k, t in old.items()} == {
        k: (t.file.name, t.dtype, t.shape, t.begin) for k, t in new.items()
    }
    names = {path.name for path in base.iterdir()} - set(left)
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names | {MERGED}
    for file in (*beside, "config.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (base / file).read_bytes()
    told = json.loads((tmp_path / "merged" / MERGED).read_text())
    assert told["provenance"] == {"policy": "ada", "revision": 3}
    assert (told["spec"]["rank"], told["spec"]["method"]) == (3, "rslora")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged"]


def test_only_adapted_tensors_change(tmp_path: Path) -> None:
    config = read_config(GOLDENS / "odd")
    spec = AdapterSpec(targets=("k_proj", "experts.up_proj"))
    merge_checkpoint(GOLDENS / "odd", random_factors(config, spec), spec, tmp_path / "merged")
    old, new = read_headers(GOLDENS / "odd"), read_headers(tmp_path / "merged")
    changed = {name for name in old if not np.array_equal(old[name].read(), new[name].read())}
    wanted = {f"model.layers.{i}.self_attn.k_proj.weight" for i in range(3)}
    wanted |= {f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in (0, 2) for e in range(5)}
    assert changed == wanted


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    source, adapter, spec = case("glm")
    own, seen = checkpoint_merge._write_file, []

    def second(*arguments: Any) -> None:
        seen.append(arguments)
        if len(seen) == 2:
            raise KeyboardInterrupt
        own(*arguments)

    monkeypatch.setattr(checkpoint_merge, "_write_file", second)
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(source, adapter, spec, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(checkpoint_merge, "_write_file", own)
    merge_checkpoint(source, adapter, spec, tmp_path / "merged")
    with pytest.raises(PefxError, match="merged: is there already") as caught:
        merge_checkpoint(source, adapter, spec, tmp_path / "merged")
    assert caught.value.kind == "conflict"


def edited(source: Path, target: Path, **fields: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return target


def test_what_cannot_be_merged_is_refused_by_name(tmp_path: Path) -> None:
    def refused(base: Path, adapter: Adapter, spec: AdapterSpec, match: str) -> PefxError:
        with pytest.raises(PefxError, match=match) as caught:
            merge_checkpoint(base, adapter, spec, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return caught.value

    source, adapter, spec = case("odd")
    quantised = edited(source, tmp_path / "quantised", quantization_config={"quant_method": "fp8"})
    refused(quantised, adapter, spec, "config.json: quantization_config is set")
    tied = edited(source, tmp_path / "tied", tie_word_embeddings=True)
    assert refused(tied, adapter, spec, "tie_word_embeddings is true").kind == "bad_adapter"
    assert refused(source, {"q_proj": adapter["q_proj"]}, spec, "lacks site").kind == "bad_adapter"
    wide = edited(source, tmp_path / "wide", num_hidden_layers=4)
    config = read_config(wide)
    refused(wide, random_factors(config, spec), spec, "tensor 'model.layers.3.self_attn.q_proj.weight' is missing")
    huge = {site: {k: x * np.float32(1e25) for k, x in pair.items()} for site, pair in adapter.items()}
    told = refused(source, huge, spec, "with the adapter has values that float32 has not")
    assert told.kind == "not_finite"
    assert "tensor 'lm_head.weight'" in str(told)


@pytest.mark.parametrize("name", ["everything", "latent_and_experts", "some_layers"])
def test_transformers_loads_what_is_merged(name: str) -> None:
    """Where torch, transformers and PEFT are installed; they are not needed otherwise."""
    generate = pytest.importorskip("tests.goldens.generate", exc_type=ImportError)
    assert generate.merge_apart(name) <= generate.TOLERANCE
