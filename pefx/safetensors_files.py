"""The tensors of a Hugging Face directory, known by the headers of its files and read by exact byte ranges; and files
of tensors, written.

A safetensors file is 8 bytes of length, a JSON header of that length (name -> dtype, shape, data_offsets) and the data;
offsets count from the data's start. `model.safetensors.index.json`, where there is one, says which file holds which
tensor. Nothing but headers is read until numbers are asked for, and then only those asked for.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from pefx.errors import PefxError

INDEX = "model.safetensors.index.json"
# Of the format, and a bound against garbage: the reference implementation refuses longer headers.
LONGEST_HEADER = 100_000_000
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: its type and shape, and the bytes `[begin, end)` of the file that hold it, row by row."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self, index: Index | None = None) -> np.ndarray:
        """The part `index` (slices of step 1, one for each axis; None: all of it) as a new array in the stored type.

        Only bytes of that part are read. Raises PefxError where the file is shorter than it was.
        """
        bounds = [(0, n) for n in self.shape] if index is None else spans(index, self.shape)
        out = np.empty([stop - start for start, stop in bounds], self.dtype)
        if out.size == 0:
            return out
        # Axes behind the last one that is cut are whole: the file holds them in one run.
        cut = max((i for i, span in enumerate(bounds) if span != (0, self.shape[i])), default=0)
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        lead = [range(start, stop) for start, stop in bounds[:cut]]
        offset = bounds[cut][0] * strides[cut] if bounds else 0
        flat = out.reshape(math.prod(map(len, lead)), -1).view(np.uint8)
        with open(self.file, "rb", buffering=0) as opened:
            for row, place in enumerate(np.ndindex(*map(len, lead))):
                at = offset + sum((r[i]) * s for r, i, s in zip(lead, place, strides))
                self._fill(opened.fileno(), memoryview(flat[row]), self.begin + at * self.dtype.itemsize)
        return out

    def chunks(self, size: int = 1 << 24) -> Iterator[np.ndarray]:
        """All bytes of the tensor in order, at most `size` at a time."""
        with open(self.file, "rb", buffering=0) as opened:
            for begin in range(self.begin, self.end, size):
                part = np.empty(min(size, self.end - begin), np.uint8)
                self._fill(opened.fileno(), part.data, begin)
                yield part

    def _fill(self, opened: int, out: memoryview, begin: int) -> None:
        while len(out):
            count = os.preadv(opened, [out[: 1 << 30]], begin)
            if count == 0:
                raise PefxError(f"{self.file}: tensor '{self.name}' ends early; the file was cut while it was read")
            out, begin = out[count:], begin + count


def spans(index: Index, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) of every slice. Raises ValueError for a step or another number of axes."""
    if len(index) != len(shape):
        raise ValueError(f"{len(index)} slices for shape {shape}")
    bounds = [part.indices(n) for part, n in zip(index, shape)]
    if any(step != 1 for _, _, step in bounds):
        raise ValueError(f"slices with steps: {index}")
    return [(start, max(start, stop)) for start, stop, _ in bounds]


def read_headers(directory: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory by name: those of the index, or where there is none of all `*.safetensors` files.

    Raises PefxError naming file and tensor: a file that is missing, cut, no safetensors file, or that holds other
    tensors than the index says; a tensor that is there twice, or whose bytes are not its shape's or another's as well.
    """
    directory = Path(directory)
    index = directory / INDEX
    if not index.exists():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise PefxError(f"{directory}: holds no *.safetensors file")
        return _together([read_header(file) for file in files])
    if (directory / "model.safetensors").exists():
        raise PefxError(f"{directory}: holds both model.safetensors and {INDEX}; which of them is the base?")
    placed = _weight_map(index)
    for file in sorted(set(placed.values())):
        if not (directory / file).is_file():
            name = min(name for name, where in placed.items() if where == file)
            raise PefxError(f"{index}: tensor '{name}' is in {file}, but that file is missing")
    tensors = _together([read_header(directory / file) for file in sorted(set(placed.values()))])
    for name in sorted(set(placed) | set(tensors)):
        if name not in placed:
            raise PefxError(f"{tensors[name].file}: tensor '{name}' is not named by {INDEX}")
        if name not in tensors or tensors[name].file.name != placed[name]:
            raise PefxError(f"{directory / placed[name]}: tensor '{name}' is not in it, though {INDEX} says so")
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; raises PefxError like `read_headers`."""
    raw, start, size = _raw_header(file)
    raw.pop("__metadata__", None)
    tensors = [_stored(name, raw[name], file, start) for name in raw]
    end, last = start, None
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin < end and last is not None:
            raise _unreadable(file, f"tensors '{last}' and '{tensor.name}' overlap")
        if tensor.begin != end:
            raise _unreadable(file, f"{tensor.begin - end} bytes before tensor '{tensor.name}' belong to no tensor")
        end, last = tensor.end, tensor.name
        if end > size:
            raise _unreadable(file, f"tensor '{last}' ends at byte {end}, the file at byte {size}; it is cut")
    if end != size:
        raise _unreadable(file, f"{size - end} bytes behind its last tensor")
    return {tensor.name: tensor for tensor in tensors}


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors, texts by name; raises PefxError like `read_header`."""
    found = _raw_header(file)[0].get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _unreadable(file, "its metadata is no object of texts")
    return found


def file_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A file of these tensors: widest type first, then by name, so that equal tensors make equal files.

    Raises KeyError for a type that the format does not have.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, names[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        x = tensors[name]
        header[name] = {
            "dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes],
        }  # fmt: skip
        offset += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensors[name].tobytes() for name in order)])


def _unreadable(file: Path, why: str) -> PefxError:
    return PefxError(f"{file}: not a readable safetensors file ({why})")


def _raw_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON of a file's header, where its data begins, and its size."""
    try:
        with open(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable(file, "no regular file")
            prefix = opened.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(LONGEST_HEADER, status.st_size - 8):
                told = f"{status.st_size} bytes do not hold a header; it may be cut, or of another format"
                raise _unreadable(file, told)
            raw = json.loads(opened.read(length), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError) as error:
        raise _unreadable(file, str(error)) from None
    if not isinstance(raw, dict):
        raise _unreadable(file, "its header is no JSON object")
    return raw, 8 + length, status.st_size


def _stored(name: str, entry: Any, file: Path, start: int) -> StoredTensor:
    """A header's entry, checked by itself; `start` is where the file's data begins."""

    def refuse(why: str) -> PefxError:
        return PefxError(f"{file}: not a readable safetensors file (tensor '{name}' {why})")

    if not isinstance(entry, dict):
        raise refuse("is no JSON object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise refuse(f"has shape {shape!r} and data_offsets {offsets!r}")
    if kind not in DTYPES:
        raise PefxError(f"{file}: tensor '{name}' has dtype {kind!r}, which is not known")
    dtype, (begin, end) = DTYPES[kind], offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise refuse(f"has data_offsets {offsets}, but {kind} of shape {shape} is {math.prod(shape) * dtype.itemsize}")
    return StoredTensor(name, file, dtype, tuple(shape), start + begin, start + end)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


def _together(files: list[dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for found in files:
        for name, tensor in found.items():
            if name in tensors:
                raise PefxError(f"{tensor.file}: tensor '{name}' is in {tensors[name].file.name} as well")
            tensors[name] = tensor
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file name, of an index file."""
    try:
        raw = json.loads(index.read_text(), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError) as error:
        raise PefxError(f"{index}: cannot be read as JSON ({error})") from None
    placed = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise PefxError(f"{index}: must hold an object 'weight_map' that names a file for each tensor")
    for name, file in placed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise PefxError(f"{index}: tensor '{name}' is in {file!r}, must be a *.safetensors file beside the index")
    return placed
