"""A base in the form it is read from: one array for each parameter, in chunks whose hashes are checked.

    base.json       what the base is (its digest, precision, parameters) and the SHA-256 of every chunk
    config.json     its shape, as in a Hugging Face directory; tokenizer files beside it
    arrays/<path>/  a zarr array, uncompressed, one file for each chunk; layers and experts are stacked already

A shard is read by the chunks it meets. The arrays are written with TensorStore as Orbax does, but a chunk at a time:
an Orbax save holds whole parameters in memory and begins again where it was stopped, and it has no checksums.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from pefx.config import ModelConfig, Precision
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.huggingface import shape_digest
from pefx.safetensors_files import Index, spans

FORMAT = 1
RECORD = "base.json"
ARRAYS = "arrays"
# A chunk is what is held in memory, and what is read at the least.
CHUNK_BYTES = 1 << 25
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Layout:
    """One parameter's array: its type, its shape, and the shape of its chunks."""

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    def chunks(self) -> list[tuple[int, ...]]:
        """The places of all chunks in the grid, in order."""
        return list(itertools.product(*[range(-(-n // c)) for n, c in zip(self.shape, self.chunk)]))

    def index(self, place: tuple[int, ...]) -> Index:
        """The part of the array that a chunk holds."""
        return tuple(slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, self.chunk, self.shape))

    def chunk_bytes(self, place: tuple[int, ...]) -> int:
        return math.prod(part.stop - part.start for part in self.index(place)) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Record:
    """What `base.json` holds. `exact`: nothing was rounded in conversion; `shape` is `shape_digest` of the config."""

    digest: str
    shape: str
    precision: Precision
    exact: bool
    layouts: Mapping[str, Layout]
    hashes: Mapping[str, list[str]]


def lay_out(dtype: np.dtype, shape: tuple[int, ...], chunk_bytes: int) -> Layout:
    """Chunks of whole trailing axes, at most `chunk_bytes` unless a single row is more."""
    chunk, room = [1] * len(shape), max(1, chunk_bytes // dtype.itemsize)
    for axis in range(len(shape) - 1, -1, -1):
        chunk[axis] = shape[axis] if axis == len(shape) - 1 else max(1, min(shape[axis], room))
        room //= chunk[axis]
        if chunk[axis] < shape[axis]:
            break
    return Layout(str(dtype), tuple(shape), tuple(chunk))


def open_array(directory: Path, path: str, layout: Layout, write: bool = False) -> Any:
    """The TensorStore array of a parameter, for reading or (created if absent) for writing.

    Raises PefxError where it cannot be opened, or has another layout.
    """
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{(directory / ARRAYS / path).absolute()}/"},
        "metadata": {
            "shape": layout.shape,
            "data_type": layout.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": layout.chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        # A chunk that is not there is an error, never zeros; zeros are written like other numbers.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }
    try:
        return ts.open(spec, open=True, create=write, read=not write, write=write).result()
    except (ValueError, OSError) as error:
        raise PefxError(f"{directory / ARRAYS / path}: cannot be opened ({first_line(error)})") from None


def chunk_hash(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data).hexdigest()


class ConvertedBase:
    """A converted base on disk; every chunk that is read is compared with its hash. Raises PefxError."""

    def __init__(self, directory: Path):
        self.directory, self.record = directory, read_record(directory)
        self.config: ModelConfig = read_config(directory)
        if shape_digest(self.config) != self.record.shape or self.config.precision != self.record.precision:
            raise PefxError(f"{directory / 'config.json'}: is not what this base was converted with; convert again")

    def digest(self) -> str:
        """Of the checkpoint that was converted."""
        return self.record.digest

    def read(self, path: str, index: Index, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The part `index` of a parameter of that shape as a new array of `dtype`; beside it one chunk is held."""
        layout = self.record.layouts.get(path)
        if layout is None or layout.shape != shape:
            raise PefxError(f"{self.directory / RECORD}: has no parameter '{path}' of shape {shape}; convert again")
        if not self.record.exact and dtype == np.float32 and layout.dtype != "float32":
            raise PefxError(
                f"{self.directory}: was rounded to {layout.dtype} when it was converted and cannot be loaded in "
                f"{dtype}: choose precision {layout.dtype}, or convert with --precision {dtype}"
            )
        bounds, array = spans(index, shape), open_array(self.directory, path, layout)
        out = np.empty([stop - start for start, stop in bounds], dtype)
        for number, place in enumerate(layout.chunks()):
            held = spans(layout.index(place), shape)
            shared = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(held, bounds)]
            if any(start >= stop for start, stop in shared):
                continue
            part = self._chunk(array, path, number, layout.index(place))
            here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(shared, held))
            there = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(shared, bounds))
            out[there] = part[here]
        return out

    def _chunk(self, array: Any, path: str, number: int, index: Index) -> np.ndarray:
        where = self.directory / ARRAYS / path
        try:
            part = array[index].read().result()
        except (ValueError, OSError) as error:
            raise PefxError(f"{where}: damaged, convert again ({first_line(error)})") from None
        if chunk_hash(part) != self.record.hashes[path][number]:
            told = ", ".join(f"{part.start}:{part.stop}" for part in index)
            raise PefxError(f"{where}: damaged, convert again (the bytes of [{told}] are not those that were written)")
        return part


def is_converted(directory: Path) -> bool:
    return (directory / RECORD).exists()


def write_record(directory: Path, record: Record) -> None:
    """`base.json`, whole or not at all."""
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=1)
    hashed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": text}
    write_whole(directory / RECORD, json.dumps(hashed))


def write_whole(path: Path, text: str) -> None:
    """A file that is there whole, and on disk, or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(path)


def read_record(directory: Path) -> Record:
    """What `base.json` holds. Raises PefxError where it is damaged or of another version."""
    path = directory / RECORD
    try:
        hashed = json.loads(path.read_text())
        if hashlib.sha256(hashed["record"].encode()).hexdigest() != hashed["sha256"]:
            raise ValueError("its text has another hash")
        raw = json.loads(hashed["record"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PefxError(f"{path}: damaged, convert again ({first_line(error)})") from None
    if raw.pop("format") != FORMAT:
        raise PefxError(f"{path}: has another format than {FORMAT}, which this version reads; convert again")
    layouts = {
        name: Layout(entry["dtype"], tuple(entry["shape"]), tuple(entry["chunk"]))
        for name, entry in raw.pop("layouts").items()
    }
    return Record(layouts=layouts, **raw)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def total_bytes(layouts: Mapping[str, Layout]) -> int:
    return sum(math.prod(x.shape) * DTYPES[x.dtype].itemsize for x in layouts.values())
