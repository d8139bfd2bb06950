"""Headers are read as the safetensors library writes them, byte ranges exactly; every broken file is told by name."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from pefx.errors import PefxError
from pefx.safetensors_files import INDEX, StoredTensor, file_bytes, read_header, read_headers, read_metadata, spans

TENSORS = {
    "a": np.arange(35, dtype=np.float32).reshape(5, 7),
    "b": np.arange(24, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3, 4),
    "c": np.arange(6, dtype=np.int8),
    "scalar": np.array(3.0, np.float16),
    "empty": np.zeros((0, 4), np.float32),
}


def saved(directory: Path, **files: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, directory / f"{name}.safetensors")
    return directory


def written(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file of a header that the library would not write."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def refused(directory: Path) -> str:
    with pytest.raises(PefxError) as caught:
        read_headers(directory)
    message = str(caught.value)
    assert str(directory) in message
    assert "\n" not in message
    return message


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    found = read_headers(saved(tmp_path, model=TENSORS))
    assert set(found) == set(TENSORS)
    for name, value in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        whole = found[name].read()
        assert (whole.dtype, whole.shape, whole.tobytes()) == (value.dtype, value.shape, value.tobytes())
        assert b"".join(chunk.tobytes() for chunk in found[name].chunks(5)) == value.tobytes()


@given(data=st.data())
def test_any_part_is_read_by_its_bytes_alone(tmp_path_factory, data) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    value = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    index = tuple(slice(a, b) for a, b in bounds)
    file = tmp_path_factory.mktemp("part") / "data"
    # What is not asked for is other numbers: a byte read outside the part would show.
    poisoned = np.full(shape, -1, np.int32)
    poisoned[index] = value[index]
    file.write_bytes(b"head" + poisoned.tobytes())
    part = StoredTensor("x", file, value.dtype, shape, 4, 4 + value.nbytes).read(index)
    np.testing.assert_array_equal(part, value[index])


def test_only_the_bytes_of_a_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = read_headers(saved(tmp_path, model=TENSORS))["a"]
    read = []
    fill = StoredTensor._fill

    def spy(self: StoredTensor, opened: int, out: memoryview, begin: int) -> None:
        read.append((begin - self.begin, len(out)))
        fill(self, opened, out, begin)

    monkeypatch.setattr(StoredTensor, "_fill", spy)
    tensor.read((slice(1, 3), slice(0, 7)))
    assert read == [(28, 56)]
    read.clear()
    tensor.read((slice(1, 3), slice(2, 5)))
    assert read == [(28 + 8, 12), (56 + 8, 12)]


def test_slices_with_steps_or_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="slices for shape"):
        spans((slice(0, 1),), (3, 4))
    with pytest.raises(ValueError, match="steps"):
        spans((slice(0, 4, 2),), (4,))


def entry(begin: int, end: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


HEADERS = {
    "no JSON": (b'{"a": ', b"", "not a readable safetensors file"),
    "no text": (b"\xff\xfe{}", b"", "not a readable safetensors file"),
    "a list": ([], b"", "its header is no JSON object"),
    "a bare entry": ({"a": 3}, b"", "tensor 'a' is no JSON object"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"", "tensor 'a' has shape [2] and data_offsets None"),
    "a negative size": ({"a": entry(0, 8, [-2])}, bytes(8), "tensor 'a' has shape [-2]"),
    "text for a size": ({"a": entry(0, 8, ["2"])}, bytes(8), "tensor 'a' has shape ['2']"),
    "an unknown type": ({"a": entry(0, 8, None, "F4")}, bytes(8), "tensor 'a' has dtype 'F4', which is not known"),
    "bytes of another shape": ({"a": entry(0, 8, [3])}, bytes(8), "tensor 'a' has data_offsets [0, 8]"),
    "offsets that run back": ({"a": entry(8, 0, [2])}, bytes(8), "tensor 'a' has data_offsets [8, 0]"),
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "tensors 'a' and 'b' overlap"),
    "the same bytes twice": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "tensors 'a' and 'b' overlap"),
    "a hole": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "4 bytes before tensor 'b'"),
    "out of range": ({"a": entry(0, 16)}, bytes(8), "tensor 'a' ends at byte"),
    "more behind": ({"a": entry(0, 4)}, bytes(8), "4 bytes behind its last tensor"),
    "twice in a file": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
        "'a' is there twice",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header_is_refused(case: str, tmp_path: Path) -> None:
    header, data, message = HEADERS[case]
    written(tmp_path / "model.safetensors", header, data)
    told = refused(tmp_path)
    assert message in told
    assert "model.safetensors" in told


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    file = saved(tmp_path, model=TENSORS) / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 20, 3, 0):
        file.write_bytes(whole[:size])
        assert "model.safetensors: not a readable safetensors file" in refused(tmp_path)
    written(file, {}, length=1 << 62)
    assert "do not hold a header" in refused(tmp_path)
    file.unlink()
    assert "holds no *.safetensors file" in refused(tmp_path)
    file.mkdir()
    assert "model.safetensors: not a readable safetensors file" in refused(tmp_path)


def test_a_file_cut_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    tensor = read_header(saved(tmp_path, model={"a": TENSORS["a"]}) / "model.safetensors")["a"]
    tensor.file.write_bytes(tensor.file.read_bytes()[:-4])
    with pytest.raises(PefxError, match="tensor 'a' ends early"):
        tensor.read()


def test_several_files_need_no_index_but_hold_a_tensor_once(tmp_path: Path) -> None:
    saved(tmp_path, one={"a": TENSORS["a"]}, two={"b": TENSORS["b"]})
    assert {name: tensor.file.name for name, tensor in read_headers(tmp_path).items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }
    saved(tmp_path, three={"a": TENSORS["a"]})
    assert "two.safetensors" not in refused(tmp_path)
    assert "tensor 'a' is in" in refused(tmp_path)


def indexed(directory: Path, weight_map: object) -> Path:
    saved(directory, one={"a": TENSORS["a"]}, two={"b": TENSORS["b"]}, other={"z": TENSORS["c"]})
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_an_index_says_what_belongs(tmp_path: Path) -> None:
    found = read_headers(indexed(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert set(found) == {"a", "b"}  # and not what lies in other.safetensors


INDEXES = {
    "a missing file": ({"a": "one.safetensors", "b": "gone.safetensors"}, "tensor 'b' is in gone.safetensors, but"),
    "a tensor elsewhere": ({"a": "one.safetensors", "b": "one.safetensors"}, "tensor 'b' is not in it"),
    "files exchanged": ({"a": "two.safetensors", "b": "one.safetensors"}, "tensor 'a' is not in it"),
    "a tensor unnamed": ({"b": "two.safetensors", "z": "other.safetensors", "a": "two.safetensors"}, "'a' is not in"),
    "a file half named": ({"b": "one.safetensors"}, "tensor 'a' is not named by"),
    "a file elsewhere": ({"a": "../one.safetensors"}, "must be a *.safetensors file beside the index"),
    "a number": ({"a": 3}, "tensor 'a' is in 3"),
    "nothing": ({}, "must hold an object 'weight_map'"),
    "a list": (["a"], "must hold an object 'weight_map'"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    weight_map, message = INDEXES[case]
    assert message in refused(indexed(tmp_path / "base", weight_map))


def test_an_index_beside_a_whole_file_or_of_no_json_is_refused(tmp_path: Path) -> None:
    directory = indexed(tmp_path, {"a": "one.safetensors"})
    (directory / INDEX).write_text('{"weight_map": {"a": ')
    assert f"{INDEX}: cannot be read as JSON" in refused(directory)
    saved(directory, model={"a": TENSORS["a"]})
    assert "holds both model.safetensors and" in refused(directory)


def test_written_files_are_read_back_and_do_not_follow_the_order_of_names(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=ml_dtypes.bfloat16),
        "c": np.zeros((0, 3), np.float32),
    }
    one = file_bytes(tensors, {"format": "pt", "also": "this"})
    assert one == file_bytes(dict(reversed(tensors.items())), {"also": "this", "format": "pt"})
    file = tmp_path / "x.safetensors"
    file.write_bytes(one)
    found = read_header(file)
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert found[name].read().tobytes() == x.tobytes()
    assert read_metadata(file) == {"format": "pt", "also": "this"}
    with safe_open(file, framework="numpy") as opened:
        np.testing.assert_array_equal(opened.get_tensor("b"), tensors["b"])
    file.write_bytes(file_bytes(tensors, {}))
    assert read_metadata(file) == {}
