"""Parameters put together from stored tensors, part by part; 8-bit blocks against NumPy; misfits told by name."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from pefx.errors import PefxError
from pefx.safetensors_files import read_headers
from pefx.stored_weights import FP8, SCALE, Source, StoredWeights, fp8_blocks, same_tensor

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(5)
LAYERS, EXPERTS, ROWS, COLUMNS = 2, 3, 5, 4
NAMES = np.array([[f"{layer}.{e}" for e in range(EXPERTS)] for layer in range(LAYERS)], object)


def store(directory: Path, tensors: dict[str, np.ndarray], blocks: tuple[int, int] | None = None) -> StoredWeights:
    save_file(tensors, directory / "model.safetensors")
    return StoredWeights(read_headers(directory), directory, blocks)


def experts() -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=(ROWS, COLUMNS)).astype(np.float32) for name in NAMES.flat}


def test_every_part_of_a_stacked_parameter_is_that_part(tmp_path: Path) -> None:
    tensors = experts()
    weights = store(tmp_path, tensors)
    straight = np.stack([np.stack([tensors[name] for name in row]) for row in NAMES])
    for source, whole in (Source(NAMES), straight), (Source(NAMES, True), straight.swapaxes(2, 3)):
        for cut in [
            (slice(None),) * 4,
            (slice(1, 2), slice(0, 2), slice(1, 3), slice(2, 4)),
            (slice(0, 2), slice(2, 3), slice(0, 1), slice(None)),
        ]:
            for dtype in (np.dtype(np.float32), BF16):
                part = weights.read(source, cut, whole.shape, dtype)
                assert part.dtype == dtype
                np.testing.assert_array_equal(part, whole[cut].astype(dtype))
    one = weights.read(Source(np.array("1.2", object)), (slice(1, 3), slice(0, 4)), (ROWS, COLUMNS), BF16)
    np.testing.assert_array_equal(one, tensors["1.2"][1:3].astype(BF16))


def quantised(rows: int, columns: int, blocks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An 8-bit matrix, its scales, and what they mean, element by element."""
    stored = RNG.normal(size=(rows, columns), scale=60).astype(FP8)
    scale = RNG.uniform(0.5, 2, size=(-(-rows // blocks[0]), -(-columns // blocks[1]))).astype(np.float32)
    meant = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            meant[i, j] = np.float32(stored[i, j]) * scale[i // blocks[0], j // blocks[1]]
    return stored, scale, meant


@pytest.mark.parametrize("blocks", [(2, 3), (128, 128), (4, 1)])
def test_8_bit_blocks_are_multiplied_out_as_numpy_does(blocks: tuple[int, int], tmp_path: Path) -> None:
    stored, scale, meant = quantised(7, 10, blocks)
    weights = store(tmp_path, {"w": stored, "w" + SCALE: scale}, blocks)
    source, turned = Source(np.array("w", object)), Source(np.array("w", object), True)
    weights.check({"p": (source, (7, 10))}, "test")
    for rows, columns in [(slice(0, 7), slice(0, 10)), (slice(3, 6), slice(4, 5)), (slice(5, 7), slice(2, 10))]:
        for dtype in (np.dtype(np.float32), BF16):
            part = weights.read(source, (rows, columns), (7, 10), dtype)
            np.testing.assert_array_equal(part, meant[rows, columns].astype(dtype))
            part = weights.read(turned, (columns, rows), (10, 7), dtype)
            np.testing.assert_array_equal(part, meant[rows, columns].T.astype(dtype))


def changed(**tensors: np.ndarray | None) -> dict[str, np.ndarray]:
    stored, scale, _ = quantised(7, 10, (4, 4))
    whole = {"w": stored, "w" + SCALE: scale, "v": np.zeros(3, np.float32)} | tensors
    return {name: value for name, value in whole.items() if value is not None}


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"v": None}, "tensor 'v' is missing"),
    "another shape": ({"v": np.zeros(4, np.float32)}, "tensor 'v' has shape (4,), config.json says (3,)"),
    "foreign": ({"u": np.zeros(4, np.float32)}, "tensor 'u' is not part of a test base"),
    "integers": ({"v": np.zeros(3, np.int8)}, "tensor 'v' is int8; float32, float16 or bfloat16 is needed"),
    "doubles": ({"v": np.zeros(3, np.float64)}, "tensor 'v' is float64"),
    "no scales": ({"w" + SCALE: None}, "but its 'w_scale_inv' is missing"),
    "scales of other blocks": ({"w" + SCALE: np.ones((1, 3), np.float32)}, "'w_scale_inv' is float32(1, 3), must be"),
    "scales of another type": ({"w" + SCALE: np.ones((2, 3), np.float16)}, "'w_scale_inv' is float16(2, 3), must be"),
    "scales of nothing": ({"v" + SCALE: np.ones(1, np.float32)}, "tensor 'v_scale_inv' is not part of"),
    "8 bits in one axis": ({"v": np.zeros(3, FP8), "v" + SCALE: np.ones(1, np.float32)}, "tensor 'v_scale_inv' is"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_tensor_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    change, message = MISFITS[case]
    wanted = {"w": (Source(np.array("w", object)), (7, 10)), "v": (Source(np.array("v", object)), (3,))}
    store(tmp_path, changed(), (4, 4)).check(wanted, "test")
    with pytest.raises(PefxError) as caught:
        store(tmp_path, changed(**change), (4, 4)).check(wanted, "test")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_8_bits_without_a_stated_block_are_refused(tmp_path: Path) -> None:
    stored, _, _ = quantised(4, 4, (4, 4))
    with pytest.raises(PefxError, match=r"tensor 'w' is float8_e4m3fn.*quantization_config"):
        store(tmp_path, {"w": stored}).check({"w": (Source(np.array("w", object)), (4, 4))}, "test")


def test_what_rounds_is_known(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a": np.zeros(2, np.float32), "b": np.zeros(2, BF16), "c": np.zeros(2, np.float16)}
    weights = store(tmp_path, tensors)
    for name, narrow in {"a": False, "b": True, "c": False}.items():
        sources = {"p": Source(np.array(name, object))}
        assert weights.exact(sources, np.dtype(np.float32))
        assert weights.exact(sources, BF16) is narrow


def test_equal_tensors_are_known_by_their_bytes(tmp_path: Path) -> None:
    a = np.arange(6, dtype=np.float32)
    b = a.copy()
    b[5] = 7
    found = read_headers(store(tmp_path, {"a": a, "same": a.copy(), "b": b, "shape": a.reshape(2, 3)}).directory)
    assert same_tensor(found["a"], found["same"])
    assert not same_tensor(found["a"], found["b"])
    assert not same_tensor(found["a"], found["shape"])


def test_only_blocks_of_8_bit_floats_are_understood() -> None:
    path = Path("config.json")
    assert fp8_blocks({}, path) is None
    assert fp8_blocks({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}}, path) == (
        128,
        64,
    )
    for stated, message in [
        ({"quant_method": "gptq"}, "quant_method 'fp8'"),
        ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [1, 1]}, "quant_method 'fp8'"),
        ({"quant_method": "fp8"}, "weight_block_size of quantization_config is None"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size of quantization_config is \[128\]"),
        ("fp8", "quant_method 'fp8'"),
    ]:
        with pytest.raises(PefxError, match=f"config.json: .*{message}"):
            fp8_blocks({"quantization_config": stated}, path)
