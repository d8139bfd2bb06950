"""Rollouts: what a policy drew and what it got for it, and the Parquet files that keep them for audit and replay.

A file holds the rollouts of one policy at one update, `OUT/rollouts/POLICY/000012.parquet`. It is there whole or not at
all, and what is read is to the bit what was written: hashes of all fields stand in it.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32, UInt16

from pefx.complete_directory import sync
from pefx.errors import PefxError
from pefx.serving.routes import MISSING

ENDING = ".parquet"
FORMAT = b"pefx.rollouts.1"
# Of floats, a dictionary might hold one zero for both signs.
WRITING: dict[str, Any] = {
    "compression": "zstd",
    "write_page_checksum": True,
    "use_dictionary": ["policy", "task", "routes.list.element"],
    "write_statistics": False,
}
GROUP_BYTES = 16 << 20  # of the arrays of a row group: the first rollout that reaches it is its last


@dataclass(frozen=True, eq=False)
class Rollout:
    """One answer of `policy` after `revision` updates, sample `sample` of prompt `group` of `task`.

    `tokens` is the whole sequence: the prompt, what was drawn, what the task said between; those `sampled` were drawn,
    each with the model's own log-probability (nats, at temperature 1; 0 where not drawn). `routes` are of each token as
    input: of the `Lm` layers that have experts, in order, the `k` experts that it went to (65535: not known, as of the
    last token drawn, which is never fed). `reward` is not-a-number until it is known, `parts` are what it is made of.
    `text` is what was drawn in all of its `turns`, `transcript` the prompt, then completions and observations in turn.
    With an `error` it holds what there was before.
    """

    policy: str
    task: str
    group: int
    sample: int
    revision: int
    seed: int
    tokens: Int32[np.ndarray, "n"]
    sampled: Bool[np.ndarray, "n"]
    logprobs: Float32[np.ndarray, "n"]
    routes: UInt16[np.ndarray, "n Lm k"] | None
    reward: float
    parts: Mapping[str, float]
    finish_reason: str
    text: str
    turns: int
    error: str | None = None
    transcript: tuple[str, ...] = ()

    @property
    def drawn(self) -> int:
        """Tokens that were drawn."""
        return int(self.sampled.sum())

    @property
    def mean_logprob(self) -> float:
        """Nats a drawn token; of none, 0."""
        return float(self.logprobs[self.sampled].sum(dtype=np.float64)) / max(self.drawn, 1)

    @property
    def routed(self) -> int:
        """Tokens whose routes are known."""
        return 0 if self.routes is None else int((self.routes != MISSING).all(axis=(1, 2)).sum())


def _many(kind: pa.DataType) -> pa.DataType:
    """A list without nulls."""
    return pa.list_(pa.field("element", kind, nullable=False))


COLUMNS: dict[str, pa.DataType] = {
    "policy": pa.string(),
    "task": pa.string(),
    "group": pa.int64(),
    "sample": pa.int64(),
    "revision": pa.int64(),
    "seed": pa.int64(),
    "tokens": _many(pa.int32()),
    "sampled": _many(pa.bool_()),
    "logprobs": _many(pa.float32()),
    "routes": _many(pa.uint16()),
    "route_shape": _many(pa.int32()),  # layers and experts of each token
    "reward": pa.float64(),
    "parts": pa.map_(pa.string(), pa.field("value", pa.float64(), nullable=False)),
    "finish_reason": pa.string(),
    "text": pa.string(),
    "turns": pa.int64(),
    "error": pa.string(),
    "transcript": _many(pa.string()),
}
OPTIONAL = ("routes", "route_shape", "error")
SCHEMA = pa.schema([pa.field(name, kind, nullable=name in OPTIONAL) for name, kind in COLUMNS.items()])
ARRAYS = {"tokens": np.int32, "sampled": np.bool_, "logprobs": np.float32}


def rollouts_path(output: str | Path, policy: str, update: int) -> Path:
    """Where a run keeps the rollouts of `policy` that its update `update` (from 0) is made of."""
    return Path(output) / "rollouts" / policy / f"{update:06}{ENDING}"


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Write the file `path`, whole or not at all, in the place of one that is there; folders are made.

    The same bytes for the same rollouts and version of pyarrow. PefxError of kind "storage" where the disk refuses;
    naming rollout and field, where one cannot be written.
    """
    for number, rollout in enumerate(rollouts, 1):
        _check(rollout, f"{path}: rollout {number}")
    metadata = {"format": FORMAT, "rows": hashed(rollouts), "routes": hashed_routes(rollouts)}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, SCHEMA.with_metadata(metadata), **WRITING) as writer:
            for group in _groups(rollouts):
                writer.write_table(_table(group))
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise PefxError(f"{path}: cannot be written ({error})", "storage") from None
    finally:
        partial.unlink(missing_ok=True)


def read_rollouts(path: Path, routes: bool = True) -> list[Rollout]:
    """The rollouts that `write_rollouts` wrote; without `routes`, theirs are None and are not read.

    Raises PefxError where there is no such file, it is damaged, or is something else.
    """
    names = [name for name in COLUMNS if routes or not name.startswith("route")]
    found: list[Rollout] = []
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"format") != FORMAT:
                raise PefxError(f"{path}: holds no rollouts; they are in files of format {FORMAT.decode()}")
            if not file.schema_arrow.equals(SCHEMA):
                raise PefxError(f"{path}: is damaged: its columns are not those of rollouts")
            for index in range(file.num_row_groups):
                table = file.read_row_group(index, columns=names)
                table.validate(full=True)
                found += _rollouts(table, path, len(found))
    except FileNotFoundError:
        raise PefxError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # text in its footer that is none
        raise PefxError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if metadata.get(b"rows") != hashed(found) or (routes and metadata.get(b"routes") != hashed_routes(found)):
        raise PefxError(f"{path}: is damaged: what it holds has not the hash that was written with it")
    return found


def hashed(rollouts: Iterable[Rollout]) -> bytes:
    """A hash of all fields but routes, to the bit."""
    digest = hashlib.sha256()
    for rollout in rollouts:
        plain = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
        arrays = [plain.pop(name) for name in ARRAYS]
        del plain["routes"]
        numbers = np.array([plain.pop("reward"), *rollout.parts.values()], np.float64)
        plain["parts"] = list(rollout.parts)
        digest.update(json.dumps([plain, len(rollout.tokens)]).encode())
        for array in (*arrays, numbers):
            digest.update(array.tobytes())
    return digest.hexdigest().encode()


def hashed_routes(rollouts: Iterable[Rollout]) -> bytes:
    """A hash of the routes."""
    digest = hashlib.sha256()
    for rollout in rollouts:
        routes = rollout.routes
        digest.update(b"none" if routes is None else json.dumps(routes.shape).encode() + routes.tobytes())
    return digest.hexdigest().encode()


def _check(rollout: Rollout, where: str) -> None:
    """Raise PefxError unless it can be written, and read as it is."""
    length = len(rollout.tokens)
    for name, kind in ARRAYS.items():
        array = getattr(rollout, name)
        if array.dtype != kind or array.shape != (length,):
            wanted = f"{np.dtype(kind)}[{length}]"
            raise PefxError(f"{where}, field '{name}': must be {wanted}, is {array.dtype}{list(array.shape)}")
    routes = rollout.routes
    if routes is not None and (routes.dtype != np.uint16 or routes.ndim != 3 or len(routes) != length):
        wanted = f"uint16[{length}, layers, experts]"
        raise PefxError(f"{where}, field 'routes': must be {wanted}, is {routes.dtype}{list(routes.shape)}")
    texts = {name: getattr(rollout, name) or "" for name in ("policy", "task", "finish_reason", "text", "error")}
    for name, text in (texts | {"parts": "".join(rollout.parts), "transcript": "".join(rollout.transcript)}).items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PefxError(f"{where}, field '{name}': is no UTF-8 text ({error.reason})") from None


def _groups(rollouts: Sequence[Rollout]) -> Iterator[list[Rollout]]:
    """They in row groups, by size."""
    group: list[Rollout] = []
    size = 0
    for rollout in rollouts:
        group.append(rollout)
        size += rollout.tokens.nbytes * 3 + (0 if rollout.routes is None else rollout.routes.nbytes)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(rollouts: Sequence[Rollout]) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(r, name, None) for r in rollouts] for name in COLUMNS}
    columns["routes"] = [None if r.routes is None else r.routes.reshape(-1) for r in rollouts]
    columns["route_shape"] = [None if r.routes is None else r.routes.shape[1:] for r in rollouts]
    columns["parts"] = [list(r.parts.items()) for r in rollouts]
    return pa.table([pa.array(columns[name], kind) for name, kind in COLUMNS.items()], schema=SCHEMA)


def _rollouts(table: pa.Table, path: Path, before: int) -> Iterator[Rollout]:
    """The rollouts of a row group, `before` of the file's rows being in others."""
    arrays = {name: table.column(name).combine_chunks() for name in (*ARRAYS, "routes") if name in table.column_names}
    plain = table.drop_columns(list(arrays)).to_pylist()
    for index, row in enumerate(plain):
        where, shape = f"{path}: row {before + index + 1}", row.pop("route_shape", None)
        values: dict[str, Any] = {"routes": None}
        for name, array in arrays.items():
            own = array[index].values  # None where it is null
            values[name] = None if own is None else np.array(own.to_numpy(zero_copy_only=False))
        if len({len(values[name]) for name in ARRAYS}) > 1:
            raise PefxError(f"{where}: tokens, sampled and logprobs are not of one length")
        if values["routes"] is not None:
            whole = (len(values["tokens"]), *(shape or ()))
            if len(whole) != 3 or min(whole) < 0 or values["routes"].size != np.prod(whole):
                raise PefxError(f"{where}, column 'routes': is not of the shape {shape} a token")
            values["routes"] = values["routes"].reshape(whole)
        yield Rollout(**row | values | {"parts": dict(row["parts"]), "transcript": tuple(row["transcript"])})
