"""Checkpoints of a run: Orbax underneath, with the checks it does not make.

Orbax commits by rename, so a killed writer leaves nothing visible. But it casts a wrong dtype silently, skips a save
while another is in flight, loads flipped bits, and says of a changed shape what nobody understands. Here structure,
shapes and dtypes are compared before anything is read, a save waits for the one before it, and a digest of all bytes
is kept beside the arrays and checked after reading. Of several processes one writes what all have, and all read it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from pefx.distributed import owner, several
from pefx.errors import PefxError
from pefx.mesh import fetch, spread

FORMAT = 2
# Fields that say where things lie or how often they are saved, never what is computed.
PLACES = frozenset({"output", "catalog", "checkpoint.every", "checkpoint.keep", "mesh.data", "slots", "slice_steps"})


def config_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists)."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a config dataclass, got {type(config).__name__}")
    return json.loads(json.dumps(asdict(config)))


def flat_fields(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict of dotted names, e.g. `users.0.name`."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flat_fields(item, f"{prefix}.{key}" if prefix else key))
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """`sha256:...` of a config dict, without the fields of `PLACES`."""
    fields = {name: value for name, value in flat_fields(config).items() if name not in PLACES}
    return "sha256:" + hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_same_config(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise PefxError naming the first field in which two config dicts differ (fields of `PLACES` aside)."""
    if config_hash(saved) == config_hash(now):
        return
    old, new = flat_fields(saved), flat_fields(now)
    for name in sorted(set(old) | set(new)):
        if name in PLACES or (name in old and name in new and old[name] == new[name]):
            continue
        before = json.dumps(old[name]) if name in old else "absent"
        after = json.dumps(new[name]) if name in new else "absent"
        raise PefxError(
            f"{where}: holds a run whose config field '{name}' was {before}, now it is {after}; "
            "restore the field to resume, or choose another output directory"
        )


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, e.g. `bank.factors.q_proj.a`, in tree order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """`sha256:...` over name, dtype, shape and bytes of every array, by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return "sha256:" + digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run under `directory`, one per step, the newest `keep` kept. Use as a context manager."""

    def __init__(self, directory: Path, keep: int = 2):
        if keep < 1:
            raise PefxError(f"config field 'checkpoint.keep' is {keep}; it must be at least 1")
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            str(self.directory), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._pending: Any = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None and several():
            return  # a process that is lost would be waited for
        self.wait()
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, tree: Any, meta: Mapping[str, Any]) -> None:
        """Save asynchronously: returns once the arrays are copied to the host, so the caller may donate them.

        `meta` is any JSON value by name (config, data positions); it is part of what is loaded again.
        """
        self.wait()
        arrays = {}
        for name, leaf in flatten(tree).items():  # one at a time: only the owner keeps what is spread over processes
            whole = fetch(leaf)
            if owner():
                arrays[name] = np.array(whole, copy=True)
            else:  # Orbax waits for all processes, and takes the numbers from the first
                arrays[name] = np.broadcast_to(np.zeros((), whole.dtype), whole.shape)
        record = {
            "format": FORMAT,
            "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
            "digest": digest_arrays(arrays) if owner() else "",
            "meta": dict(meta),
        }
        self._pending = self._orbax.save_async(step, arrays, force=True, custom_metadata={"pefx": json.dumps(record)})
        if self._pending is None:
            raise RuntimeError(f"{self.directory}: the save of step {step} was skipped")

    def wait(self) -> None:
        """Block until the save in flight, if any, is complete; raises what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def meta(self, step: int) -> dict[str, Any]:
        """The `meta` saved with a step, without reading its arrays."""
        return self._record(step)["meta"]

    def load(self, step: int, like: Any) -> Any:
        """The tree of a step, with the structure, shapes, dtypes and placement of `like` (its values are not used).

        Raises PefxError when the saved arrays are not of that structure, or their bytes are not those saved.
        """
        record = self._record(step)
        wanted = flatten(like)
        self._check_layout(step, record["arrays"], wanted)
        abstract = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        try:
            loaded = self._orbax.load(step, abstract)
        except Exception as error:
            raise self._damaged(step, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        arrays = {name: np.asarray(loaded[name]) for name in wanted}
        if digest_arrays(arrays) != record["digest"]:
            raise self._damaged(step, "its bytes are not those that were saved")
        leaves = [_place(arrays[name], leaf) for name, leaf in wanted.items()]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)

    def _record(self, step: int) -> dict[str, Any]:
        try:
            custom: Any = self._orbax.checkpointables_metadata(step).custom_metadata
            record = json.loads(custom["pefx"])
        except Exception as error:
            raise self._damaged(step, f"its record cannot be read ({type(error).__name__})") from error
        if record.get("format") != FORMAT:
            where = self.directory / str(step)
            raise PefxError(f"{where}: checkpoint format {record.get('format')}, this version reads {FORMAT}")
        return record

    def _check_layout(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        where = self.directory / str(step)
        for name in sorted(set(saved) ^ set(wanted)):
            side = "has no" if name in wanted else "has an unexpected"
            raise PefxError(f"{where}: checkpoint {side} array '{name}'; it belongs to another model or version")
        for name, leaf in wanted.items():
            dtype, shape = saved[name]
            if tuple(shape) != tuple(leaf.shape) or dtype != str(leaf.dtype):
                raise PefxError(
                    f"{where}: array '{name}' is {dtype}{tuple(shape)}, this run needs {leaf.dtype}{tuple(leaf.shape)}"
                )

    def _damaged(self, step: int, why: str) -> PefxError:
        where = self.directory / str(step)
        return PefxError(f"{where}: damaged checkpoint: {why}; delete that directory to resume from the one before it")


def _place(array: np.ndarray, like: Any) -> Any:
    """A copy of `array` where `like` lies; a copy, because a donated buffer must not alias numpy memory."""
    if isinstance(like, jax.Array) and not like.is_fully_addressable:
        return spread(array, like.sharding)
    if isinstance(like, jax.Array):
        return jax.device_put(jnp.array(array, copy=True), like.sharding)
    return array.copy()
