"""Parameters of the base from the tensors of a Hugging Face directory, one shard at a time.

A parameter has its layers stacked, and its experts; a checkpoint has a tensor for each. A `Source` says which, and any
part of a parameter is put together from just the bytes it needs. Matrices of 8-bit floats with a scale for each block
(`weight_scale_inv`, as DeepSeek-V3 is published; arXiv:2412.19437, section 3.3) are multiplied out on the way.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pefx.errors import PefxError
from pefx.safetensors_files import Index, StoredTensor, spans

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
SCALE = "_scale_inv"  # behind the name of an 8-bit tensor


@dataclass(frozen=True)
class Source:
    """Where a parameter's numbers are: an array of tensor names, of the shape of its leading axes (layers, experts).

    What stands behind them is each tensor's, `transposed` where the parameter is `[in, out]`.
    """

    names: np.ndarray
    transposed: bool = False


class StoredWeights:
    """The tensors of a directory as numbers. `blocks` is (rows, columns) of an 8-bit matrix that share a scale."""

    def __init__(self, tensors: Mapping[str, StoredTensor], directory: Path, blocks: tuple[int, int] | None = None):
        self.tensors, self.directory, self.blocks = tensors, directory, blocks

    def check(self, wanted: Mapping[str, tuple[Source, tuple[int, ...]]], family: str) -> None:
        """Raise PefxError, naming a tensor, unless these parameters (source, shape) use all tensors, each as it is.

        Only headers are looked at.
        """
        unused = set(self.tensors)
        for source, whole in wanted.values():
            shape = whole[source.names.ndim :]
            shape = shape[::-1] if source.transposed else shape
            for name in source.names.flat:
                unused -= self._check(name, shape)
        if unused:
            raise PefxError(f"{self.tensors[min(unused)].file}: tensor '{min(unused)}' is not part of a {family} base")

    def _check(self, name: str, shape: tuple[int, ...]) -> set[str]:
        """Checks one tensor, and returns its name and that of its scales."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise PefxError(f"{self.directory}: tensor '{name}' is missing")
        if tensor.shape != shape:
            raise PefxError(f"{tensor.file}: tensor '{name}' has shape {tensor.shape}, config.json says {shape}")
        if tensor.dtype in FLOATS:
            return {name}
        if tensor.dtype != FP8 or self.blocks is None:
            told = " (or float8_e4m3fn, where config.json has a quantization_config)" if tensor.dtype == FP8 else ""
            raise PefxError(
                f"{tensor.file}: tensor '{name}' is {tensor.dtype}; float32, float16 or bfloat16 is needed{told}"
            )
        scale = self.tensors.get(name + SCALE)
        if scale is None:
            raise PefxError(f"{tensor.file}: tensor '{name}' is {tensor.dtype}, but its '{name + SCALE}' is missing")
        blocks = tuple(-(-n // b) for n, b in zip(shape, self.blocks))
        if len(shape) != 2 or scale.dtype != np.float32 or scale.shape != blocks:
            raise PefxError(
                f"{scale.file}: tensor '{scale.name}' is {scale.dtype}{scale.shape}, must be float32{blocks}: "
                f"one scale for each block of {self.blocks[0]}x{self.blocks[1]}"
            )
        return {name, scale.name}

    def exact(self, sources: Mapping[str, Source], dtype: np.dtype) -> bool:
        """Whether every tensor of these parameters can be held in `dtype` without rounding."""
        if dtype == np.float32:
            return True
        return all(self.tensors[name].dtype == dtype for source in sources.values() for name in source.names.flat)

    def read(self, source: Source, index: Index, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The part `index` of a parameter of that shape, in `dtype`. Beside it one tensor's part is held."""
        bounds = spans(index, shape)
        out = np.empty([stop - start for start, stop in bounds], dtype)
        lead = source.names.ndim
        inner = tuple(slice(start, stop) for start, stop in bounds[lead:])
        names = source.names[(*[slice(start, stop) for start, stop in bounds[:lead]], ...)]
        for place in np.ndindex(names.shape):
            part = self.numbers(str(names[place]), inner[::-1] if source.transposed else inner)
            part = part.T if source.transposed else part
            # NumPy copies numbers that it does not know one by one, whole numbers of their size at once.
            if part.dtype == dtype:
                _bits(out)[place] = _bits(part)
            else:
                out[place] = part
        return out

    def numbers(self, name: str, index: Index) -> np.ndarray:
        """The part `index` of a tensor in its stored type, or in float32 where that is 8 bits and scales."""
        tensor = self.tensors[name]
        part = tensor.read(index)
        if tensor.dtype != FP8 or self.blocks is None:
            return part
        wide = part.astype(np.float32)
        bounds = spans(index, tensor.shape)
        blocks = tuple(slice(a // b, -(-z // b)) for (a, z), b in zip(bounds, self.blocks))
        scale = self.tensors[name + SCALE].read(blocks)
        for axis, ((start, stop), size) in enumerate(zip(bounds, self.blocks)):
            block = np.arange(start, stop) // size - start // size
            scale = np.take(scale, block, axis=axis)
        wide *= scale
        return wide


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")


def same_tensor(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same bytes; compared by pieces."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.chunks(), b.chunks(), strict=True))


def fp8_blocks(raw: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    """(rows, columns) of a block, by the `quantization_config` of a parsed config.json; None where there is none.

    Raises PefxError for any other form than 8-bit floats with block scales.
    """
    stated = raw.get("quantization_config")
    if stated is None:
        return None
    stated = stated if isinstance(stated, dict) else {"quant_method": f"of {stated!r}"}
    method = stated.get("quant_method")
    if method != "fp8" or stated.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise PefxError(f"{path}: quantization_config is {json.dumps(stated)}; quant_method 'fp8' (e4m3) is supported")
    size = stated.get("weight_block_size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise PefxError(f"{path}: weight_block_size of quantization_config is {size!r}, must be like [128, 128]")
    return size[0], size[1]
