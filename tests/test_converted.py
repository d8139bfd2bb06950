"""Converted bases: any part is read by its chunks, and no flipped, missing or exchanged byte goes unseen."""

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.conversion import convert
from pefx.converted import ARRAYS, RECORD, ConvertedBase, Layout, chunk_hash, lay_out, open_array, total_bytes
from pefx.errors import PefxError
from pefx.loading import load_base

GOLDENS = Path(__file__).parent / "goldens"
BF16 = np.dtype(ml_dtypes.bfloat16)
EXPERTS = "segments.0.experts.gate_proj"


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    size=st.integers(1, 400),
    dtype=st.sampled_from([np.dtype(np.float32), BF16]),
)
def test_chunks_cover_an_array_once_and_are_small(shape: tuple[int, ...], size: int, dtype: np.dtype) -> None:
    layout = lay_out(dtype, shape, size)
    seen = np.zeros(shape, int)
    for place in layout.chunks():
        seen[layout.index(place)] += 1
        assert layout.chunk_bytes(place) <= max(size, shape[-1] * dtype.itemsize)
    assert (seen == 1).all()
    assert sum(map(layout.chunk_bytes, layout.chunks())) == total_bytes(MappingProxyType({"x": layout}))


def test_experts_are_put_together_into_chunks_and_large_ones_cut() -> None:
    assert lay_out(BF16, (4, 128, 2048, 768), 1 << 25).chunk == (1, 10, 2048, 768)
    assert lay_out(BF16, (4, 128, 7168, 8192), 1 << 25).chunk == (1, 1, 2048, 8192)
    assert lay_out(BF16, (48, 2048), 1 << 25).chunk == (48, 2048)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The odd base in chunks of at most 2000 bytes: several experts in one, and matrices of several."""
    target = tmp_path_factory.mktemp("converted") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pefx.converted.CHUNK_BYTES", 8000)
        convert(GOLDENS / "odd", target)
    return target


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "base"))


@given(data=st.data())
def test_any_part_of_a_parameter_is_that_part(data, whole: Path) -> None:
    stored = ConvertedBase(whole)
    path = data.draw(st.sampled_from([EXPERTS, "embed", "final_norm", "segments.1.block.feed.down_proj"]))
    shape = stored.record.layouts[path].shape
    everything = stored.read(path, tuple(slice(0, n) for n in shape), shape, np.dtype(np.float32))
    cuts = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    index = tuple(slice(a, b) for a, b in cuts)
    dtype = data.draw(st.sampled_from([np.dtype(np.float32), BF16]))
    part = stored.read(path, index, shape, dtype)
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, everything[index].astype(dtype))


def refused(directory: Path) -> str:
    with pytest.raises(PefxError) as caught:
        load_base(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_of_any_chunk_is_found(base: Path) -> None:
    files = sorted(file for file in (base / ARRAYS).rglob("*") if file.is_file() and file.name != "zarr.json")
    assert len(files) > 40
    for file in files[::9]:
        flip(file, 9)
        told = refused(base)
        assert "damaged, convert again (the bytes of [" in told
        assert f"{ARRAYS}/{file.relative_to(base / ARRAYS).parts[0]}:" in told
        flip(file, 9)
    load_base(base)


def test_missing_cut_and_exchanged_chunks_are_found(base: Path) -> None:
    first, second = sorted(file for file in (base / ARRAYS / EXPERTS).rglob("*") if file.is_file())[:2]
    one, other = first.read_bytes(), second.read_bytes()
    assert len(one) == len(other)
    first.write_bytes(other)
    assert "the bytes of [0:1, 0:2, 0:40, 0:24]" in refused(base)
    first.write_bytes(one[:-4])
    assert f"{EXPERTS}: damaged, convert again" in refused(base)
    first.unlink()
    assert "is missing" in refused(base)


def test_a_changed_record_or_config_or_array_is_found(base: Path) -> None:
    text = (base / RECORD).read_text()
    for at in range(100, len(text), len(text) // 7):
        flip(base / RECORD, at)
        assert f"{RECORD}: damaged, convert again" in refused(base)
        (base / RECORD).write_text(text)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert "config.json: is not what this base was converted with" in refused(base)
    (base / "config.json").write_text(json.dumps(config))
    array = base / ARRAYS / "embed" / "zarr.json"
    array.write_text(array.read_text().replace("float32", "int32"))
    assert f"{ARRAYS}/embed: cannot be opened" in refused(base)
    array.unlink()
    assert f"{ARRAYS}/embed: cannot be opened" in refused(base)


def test_another_version_or_shape_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PefxError, match=r"base\.json: has no parameter 'embed' of shape \(3, 4\)"):
        ConvertedBase(base).read("embed", (slice(0, 1), slice(0, 1)), (3, 4), BF16)
    monkeypatch.setattr("pefx.converted.FORMAT", 2)
    assert "has another format than 2" in refused(base)


def test_zeros_are_stored_and_nothing_is_read_as_zeros(tmp_path: Path) -> None:
    layout = Layout("bfloat16", (4, 3), (2, 3))
    array = open_array(tmp_path, "x", layout, write=True)
    zeros = np.zeros((2, 3), BF16)
    array[0:2].write(zeros).result()
    assert chunk_hash(open_array(tmp_path, "x", layout)[0:2].read().result()) == chunk_hash(zeros)
    with pytest.raises(ValueError, match="is missing"):
        open_array(tmp_path, "x", layout)[2:4].read().result()
