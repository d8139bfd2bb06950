"""Compiles the true training and serving steps for a slice of TPUs that is not there. libtpu does it on any machine."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from kernels.implementation import BEST_ON_TPU, implementation
from pefx.compiler import compiling_for
from pefx.config import MeshConfig, PlanConfig
from pefx.errors import PefxError
from pefx.mesh import mesh_of
from pefx.planning.abstract import Arguments
from pefx.planning.collectives import Traffic, traffic
from pefx.steps import serve_step, train_step

# libtpu looks for a TPU, and complains, unless it is told of one; several processes may then use it at once.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Two ways in which the compiler says that a program needs more memory than there is: by all of it, or by temporaries.
NUMBER = r"([\d.]+)([KMGT])"
TOO_LARGE = {
    "total": re.compile(rf"Used {NUMBER} of {NUMBER} hbm"),
    "temporary": re.compile(rf"temporaries \({NUMBER}\) exceeds available HBM \({NUMBER}\)"),
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Compiled:
    """One step on one device, in bytes: `temporary` beside arguments and results.

    Where the compiler gave up for want of memory: `capacity`, and `total` if it told all that it needs together.
    """

    step: str
    seconds: float
    temporary: int = 0
    total: int | None = None
    capacity: int | None = None
    traffic: Traffic | None = None
    kernels: int = 0

    @property
    def fits(self) -> bool:
        return self.capacity is None


def devices_of(topology: str) -> int:
    """How many devices, as jax counts them, a topology has. Raises PefxError like `slice_of`."""
    return len(_devices(topology))


def _devices(topology: str) -> list[Any]:
    os.environ.update(QUIET)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # noqa: BLE001 (what libtpu raises has no type of its own)
        reason = str(error).splitlines()[0]
        hint = "" if find_spec("libtpu") else "; libtpu is not installed: pip install -e '.[test]'"
        raise PefxError(f"topology {topology!r} cannot be compiled for ({reason}){hint}") from None


@contextmanager
def slice_of(topology: str, shape: MeshConfig) -> Iterator[Mesh]:
    """A mesh of that shape over the devices of a topology that is not there, in use.

    Raises PefxError where libtpu is not installed or knows no such topology, or the mesh has other than its devices.
    """
    devices = np.array(_devices(topology))
    needed = shape.rows * shape.model
    if needed != devices.size:
        raise PefxError(
            f"config field 'mesh' is {shape.data} x {shape.expert} x {shape.model} (data, expert, model), "
            f"{needed} devices; {topology} has {devices.size}"
        )
    mesh, cached = mesh_of(devices, shape), jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    # A program for devices that are not there can be written to the cache, and not read back.
    _use_cache(False)
    try:
        with jax.sharding.set_mesh(mesh):
            yield mesh
    finally:
        _use_cache(cached)


def _use_cache(use: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", use)
    compilation_cache.reset_cache()


def compile_step(step: str, config: PlanConfig, given: Arguments, mesh: Mesh) -> Compiled:
    """Compiles one step, "train" or "serve", in any thread while `slice_of` holds `mesh`."""

    def lower() -> Any:
        if step == "train":
            arguments = (given.base, given.bank, given.optimizer, given.batch, given.hyper)
            return train_step.jitted().lower(*arguments, remat=config.remat)
        return serve_step.jitted().lower(given.base, given.bank, given.pool, given.serve)

    with jax.sharding.set_mesh(mesh), compiling_for("tpu"), implementation(BEST_ON_TPU):
        return _compile(step, lower)


def _compile(step: str, lower: Any) -> Compiled:
    start = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = too_large(str(error))
        if not found:
            raise
        return replace(Compiled(step, time.perf_counter() - start), **found)
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    return Compiled(
        step,
        time.perf_counter() - start,
        memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        traffic=traffic(text),
        kernels=text.count('custom_call_target="tpu_custom_call"'),
    )


def too_large(message: str) -> dict[str, int]:
    """Bytes of `total` or `temporary`, and of `capacity`, from the compiler's complaint; of another one nothing."""
    for name, pattern in TOO_LARGE.items():
        if found := pattern.search(message):
            needed, capacity = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
            return {name: needed, "capacity": capacity}
    return {}
