"""Bases loaded whole and in shards: the same bits, each part read once, nothing read that is not needed."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from pefx.errors import PefxError
from pefx.huggingface import parameters
from pefx.loading import HuggingFaceBase, load_base
from pefx.stored_weights import SCALE

GOLDENS = Path(__file__).parent / "goldens"
SHIPPED = Path(__file__).parent.parent / "assets" / "base"
RULES = {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model", "experts": "expert"}


def divided(variable: nnx.Variable) -> NamedSharding:
    """Over 2 x 2 of the devices, where sizes allow; whole over `data`."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "expert", "model"), axis_types=(AxisType.Auto,) * 3)
    names = [RULES.get(name) for name in variable.get_metadata()["out_sharding"]]
    return NamedSharding(mesh, P(*[name if n % 2 == 0 else None for name, n in zip(names, variable.shape)]))


def values(base) -> dict[str, np.ndarray]:
    return {path: np.asarray(variable[...]) for path, variable in parameters(base).items()}


def test_the_digest_of_the_shipped_base_stays() -> None:
    digest = "sha256:a4dd88d6ba12c7d7d75f384496b5112bedb8dc6da0ec83e233488573d5685507"
    assert HuggingFaceBase(SHIPPED).digest() == digest


def test_shards_hold_what_the_whole_holds_each_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, digest = load_base(GOLDENS / "plain")
    asked: list[tuple[str, str]] = []
    read = HuggingFaceBase.read

    def spy(self, path, index, shape, dtype):
        asked.append((path, str(index)))
        return read(self, path, index, shape, dtype)

    monkeypatch.setattr(HuggingFaceBase, "read", spy)
    parts, same = load_base(GOLDENS / "plain", placement=divided)
    assert same == digest
    assert len(set(asked)) == len(asked)
    cut = 0
    for (path, a), (_, b) in zip(parameters(whole).items(), parameters(parts).items(), strict=True):
        assert b[...].sharding == divided(a)
        cut += not b[...].is_fully_replicated
        assert np.asarray(a[...]).tobytes() == np.asarray(b[...]).tobytes(), path
    assert cut > 8
    assert jax.tree.structure(whole) == jax.tree.structure(parts)


def test_an_8_bit_checkpoint_is_the_base_its_blocks_mean(tmp_path: Path) -> None:
    """Its matrices stand as 8-bit floats; the same base in float32 gives the same parameters, under another digest."""
    shutil.copytree(GOLDENS / "odd", tmp_path / "wide")
    shutil.copytree(GOLDENS / "odd", tmp_path / "narrow")
    wide, narrow = load_file(GOLDENS / "odd" / "model.safetensors"), {}
    for name, value in list(wide.items()):
        if value.ndim != 2 or "layers" not in name or name.endswith("mlp.gate.weight"):
            narrow[name] = value
            continue
        rows, columns = (-(-n // 16) for n in value.shape)
        scale = np.random.default_rng(len(narrow)).uniform(1e-3, 2e-3, (rows, columns)).astype(np.float32)
        grown = np.kron(scale, np.ones((16, 16), np.float32))[: value.shape[0], : value.shape[1]]
        narrow[name] = (value / grown).astype(ml_dtypes.float8_e4m3fn)
        narrow[name + SCALE] = scale
        wide[name] = narrow[name].astype(np.float32) * grown
    save_file(wide, tmp_path / "wide" / "model.safetensors")
    save_file(narrow, tmp_path / "narrow" / "model.safetensors")
    path = tmp_path / "narrow" / "config.json"
    stated = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    for precision in ("float32", "bfloat16"):
        ours, digest = load_base(tmp_path / "narrow", precision)
        theirs, other = load_base(tmp_path / "wide", precision)
        assert digest != other
        mine, whole = values(ours), values(theirs)
        for name in whole:
            assert mine[name].tobytes() == whole[name].tobytes(), name
    path.write_text((tmp_path / "wide" / "config.json").read_text())
    with pytest.raises(PefxError, match="is float8_e4m3fn"):
        load_base(tmp_path / "narrow")


def test_headers_are_checked_before_a_number_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDENS / "odd", tmp_path / "base")
    tensors = load_file(GOLDENS / "odd" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    monkeypatch.setattr("pefx.safetensors_files.StoredTensor._fill", None)
    with pytest.raises(PefxError, match=r"model\.norm\.weight' is missing"):
        load_base(tmp_path / "base")


def test_layers_behind_the_last_that_the_config_counts_are_no_part_of_the_base(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "glm_air", tmp_path / "base")
    tensors = load_file(GOLDENS / "glm_air" / "model.safetensors")
    extra = {"model.layers.2.eh_proj.weight": np.zeros((36, 72), np.float32)}
    save_file(tensors | extra, tmp_path / "base" / "model.safetensors")
    assert load_base(tmp_path / "base")[1] == load_base(GOLDENS / "glm_air")[1]
    save_file(
        tensors | {"model.layers.3.norm.weight": np.zeros(36, np.float32)}, tmp_path / "base" / "model.safetensors"
    )
    with pytest.raises(PefxError, match=r"'model\.layers\.3\.norm\.weight' is not part of a glm4_moe base"):
        load_base(tmp_path / "base")
